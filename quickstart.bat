@echo off
rem Double click: quickstart.ps1, which runs tools/quickstart.py. ASCII only: cmd reads it in any code page.
pushd "%~dp0"
powershell -NoProfile -ExecutionPolicy Bypass -File "%~dp0quickstart.ps1" %*
set "code=%errorlevel%"
popd
if "%~1"=="" pause
exit /b %code%
