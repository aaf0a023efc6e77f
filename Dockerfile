# The trainer in a container: docker build -t sd-scripts-anima .
#
# docker run --rm --gpus all -v "$PWD/training:/training" sd-scripts-anima \
#     --config_file /training/train_args.toml --dataset_config /training/dataset.toml
#
# TORCH_INDEX chooses the build of torch, see docs/anima_dependency_guide.md; .../whl/cpu for none.
FROM python:3.12.12-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1

# a C compiler is what --compile needs
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 trainer
WORKDIR /app

COPY requirements.txt ./
RUN pip install torch --index-url "$TORCH_INDEX" \
    && pip install -r requirements.txt

COPY . .
USER trainer
ENTRYPOINT ["python", "anima_train_network.py"]
