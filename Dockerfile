# The server on a CPU: no torch, no compiler, no root. docker build -t stillface .
# tests/integration/serving/test_image_steps.py takes these steps without Docker, in a clean environment.

FROM python:3.11-slim-bookworm AS build
WORKDIR /app
COPY constraints.txt pyproject.toml ./
RUN python -m pip install --no-cache-dir --constraint constraints.txt uv \
 && uv venv /venv \
 && uv pip install --python /venv/bin/python --no-cache --compile-bytecode --constraints constraints.txt \
    --requirements pyproject.toml --extra serve --extra openvino

FROM python:3.11-slim-bookworm
WORKDIR /app
COPY --from=build /venv /venv
COPY pipeline pipeline
COPY serving serving
# Bytecode is made here, because the root file system may be read-only where it runs.
RUN /venv/bin/python -m compileall -q pipeline serving \
 && install -d -o 10001 -g 10001 /keys
# Others can reach it, so it does not start without a key file; compose.yaml shows how to make one.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp STILLFACE_SERVE_HOST=0.0.0.0 STILLFACE_SERVE_KEYS=/keys/keys.json
USER 10001:10001
EXPOSE 8000
VOLUME /tmp
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('STILLFACE_SERVE_PORT', '8000') + '/healthz', timeout=2)"]
ENTRYPOINT ["python", "-m", "serving"]
CMD ["serve", "/bundle"]
