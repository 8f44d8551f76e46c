# The service: build the wheel, then install it without the tools that built it.
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY sql sql
RUN pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels ".[service]"

FROM python:3.13-slim
RUN useradd --system --create-home --uid 10001 rowsignal
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "rowsignal[service]" && rm -r /wheels
USER rowsignal
ENV PYTHONUNBUFFERED=1 \
    ROWSIGNAL_HOST=0.0.0.0 \
    ROWSIGNAL_PORT=8080 \
    ROWSIGNAL_TICKET_DIR=/home/rowsignal/tickets
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["rowsignal", "serve"]
