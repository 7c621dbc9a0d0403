# A server for one bundle: non-root, writes nothing, so that the file system can be read-only. docs/serving.md tells how
# it is run. Without TORCH_INDEX pip takes torch from its usual index, on Linux with CUDA: gigabytes that a processor
# does not need. --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu leaves that out.
FROM python:3.13-slim AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/alexnet
ENV PATH=/opt/alexnet/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install "/src[serve]"

FROM python:3.13-slim
COPY --from=build /opt/alexnet /opt/alexnet
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin alexnet
ENV PATH=/opt/alexnet/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
VOLUME ["/model"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["alexnet"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--device", "cpu"]
