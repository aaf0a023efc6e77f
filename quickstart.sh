#!/usr/bin/env bash
# tools/quickstart.py by a double click. Where there is no Python for it, uv brings one: the machine's
# uv, or one that is fetched into .uv/ here. Nothing needs an administrator.
# 双击即可运行 tools/quickstart.py；没有合适的 Python 时由 uv 带来，不需要管理员权限。
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

wait_for_a_look() {  # a window that was opened for this alone would close
    if [ -t 0 ] && [ "${SHLVL:-2}" -le 1 ]; then
        read -r -p "Enter / 按回车键关闭 " _ || true
    fi
}
trap wait_for_a_look EXIT

fits='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
for python in python3.13 python3.12 python3.11 python3.10 python3 python; do
    if command -v "$python" >/dev/null && "$python" -c "$fits" >/dev/null 2>&1; then
        "$python" tools/quickstart.py "$@"
        exit
    fi
done

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    uv=.uv/uv
fi
if ! [ -x "$uv" ]; then
    echo "No Python 3.10 to 3.13 with venv: fetching uv, which brings one. / 没有合适的 Python：下载 uv 来安装。"
    source=https://astral.sh/uv/install.sh
    export UV_INSTALL_DIR=$PWD/.uv UV_NO_MODIFY_PATH=1
    { curl -LsSf "$source" || wget -qO- "$source"; } | sh || true
fi
if ! [ -x "$uv" ]; then
    echo "uv could not be fetched. Install Python 3.13 (https://www.python.org/downloads/) and run this again." >&2
    echo "无法下载 uv。请先安装 Python 3.13，再运行本文件。" >&2
    exit 1
fi
"$uv" run --script tools/quickstart.py "$@"
