# memlayers serve. For the CPU; for CUDA: docker build --build-arg TORCH=cu128 (an index of download.pytorch.org/whl).
# Needs a key: docker run -p 8000:8000 -e MEMLAYERS_API_KEY=... -v FOLDER:/memories IMAGE /memories/NAME

ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --create-home --uid 10001 memlayers && mkdir /memories && chown memlayers /memories
RUN pip install "torch>=2.6" --index-url "https://download.pytorch.org/whl/${TORCH}"

COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY src /src/src
RUN pip install "/src[serve]" && rm -r /src

USER memlayers
WORKDIR /memories
EXPOSE 8000
# Numba compiles into a folder of the user's; the backbone is in the package, in a mounted folder, or in this cache.
ENV NUMBA_CACHE_DIR=/home/memlayers/.cache/numba
VOLUME /memories
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"
ENTRYPOINT ["memlayers", "serve", "--host", "0.0.0.0", "--quiet"]
