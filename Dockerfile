# The service: build the wheel, then install it without the tools that built it.
# For a build that can be repeated, pin both bases by digest:
#   docker build --build-arg PYTHON_IMAGE=python:3.13-slim@sha256:<digest> .
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY src src
COPY sql sql
RUN pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels ".[service]"

FROM ${PYTHON_IMAGE}
RUN useradd --system --create-home --uid 10001 rowsignal
COPY --from=build /wheels /wheels
# The wheels of the first stage, and nothing from an index.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --no-index --find-links /wheels "rowsignal[service]" && rm -r /wheels
USER 10001
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ROWSIGNAL_HOST=0.0.0.0 \
    ROWSIGNAL_PORT=8080 \
    ROWSIGNAL_TICKET_DIR=/tmp/rowsignal-tickets
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["rowsignal", "serve"]
