# A server for one bundle. It runs as user 10001 and writes nothing, so the file system can be read-only.
# docs/serving.md shows how to run it. Build arguments:
#   BASE         image of both stages: Python 3.11 or later on Debian. Add @sha256:... to pin the exact image
#   EXTRAS       extras of the package, separated by commas: serve,export serves exported files too
#   TORCH_INDEX  package index of torch and torchvision. The default index brings CUDA (gigabytes);
#                https://download.pytorch.org/whl/cpu does not
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
ARG EXTRAS=serve
ARG TORCH_INDEX=""
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/alexnet
ENV PATH=/opt/alexnet/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY pyproject.toml setup.py README.md LICENSE /src/
COPY src /src/src
# With native kernels for several kinds of processors: the final image has no compiler.
RUN ALEXNET_KERNELS=required pip install "/src[$EXTRAS]"

FROM ${BASE}
# GCC's OpenMP, which the native kernels use.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/alexnet /opt/alexnet
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin alexnet
ENV PATH=/opt/alexnet/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
VOLUME ["/model"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "alexnet.cli.serve", "health"]
ENTRYPOINT ["alexnet"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--device", "cpu"]
