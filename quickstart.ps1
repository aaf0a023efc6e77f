# tools/quickstart.py by a double click on quickstart.bat. Where there is no Python for it, uv brings one:
# the machine's uv, or one that is fetched into .uv\ here. Nothing needs an administrator.
# 双击 quickstart.bat 运行 tools/quickstart.py；没有合适的 Python 时由 uv 带来，不需要管理员权限。
Set-Location -LiteralPath $PSScriptRoot
$fits = 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

function Test-Python([string[]] $Command) {
    if (-not (Get-Command $Command[0] -CommandType Application -ErrorAction SilentlyContinue)) {
        return $false
    }
    # the Store's stand-in for Python is found as well: it ends with an error
    $options = @($Command | Select-Object -Skip 1) + @('-c', $fits)
    & $Command[0] @options *> $null
    return $LASTEXITCODE -eq 0
}

foreach ($command in @(@('py', '-3.13'), @('py', '-3.12'), @('py', '-3.11'), @('py', '-3.10'), @('python'), @('python3'))) {
    if (Test-Python $command) {
        $options = @($command | Select-Object -Skip 1) + @('tools/quickstart.py') + $args
        & $command[0] @options
        exit $LASTEXITCODE
    }
}

$found = Get-Command uv -CommandType Application -ErrorAction SilentlyContinue | Select-Object -First 1
$uv = if ($found) { $found.Source } else { Join-Path $PSScriptRoot '.uv\uv.exe' }
if (-not (Test-Path -LiteralPath $uv)) {
    Write-Host 'No Python 3.10 to 3.13: fetching uv, which brings one. / 没有合适的 Python：下载 uv 来安装。'
    $env:UV_INSTALL_DIR = Join-Path $PSScriptRoot '.uv'
    $env:UV_NO_MODIFY_PATH = '1'
    $fetch = '[Net.ServicePointManager]::SecurityProtocol = 3072; irm https://astral.sh/uv/install.ps1 | iex'
    powershell -NoProfile -ExecutionPolicy Bypass -Command $fetch
}
if (-not (Test-Path -LiteralPath $uv)) {
    Write-Host 'uv could not be fetched. Install Python 3.13 (https://www.python.org/downloads/) and run this again.'
    Write-Host '无法下载 uv。请先安装 Python 3.13，再运行本文件。'
    exit 1
}
& $uv run --script tools/quickstart.py @args
exit $LASTEXITCODE
