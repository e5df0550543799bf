# One image for the explorer, the inference worker and training; docker-compose.yml says which command runs.

FROM node:24-slim AS assets
WORKDIR /srv/crossdiff/frontend
COPY frontend/package.json frontend/package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

# The Python that the tests run on.
FROM python:3.11-slim AS crossdiff
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/crossdiff

# On a GPU Triton compiles the kernels of training with it.
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# The packages change seldom and the code often: install for an empty checkout first.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir app trainer \
    && touch app/__init__.py trainer/__init__.py \
    && pip install -c constraints.txt -e .

COPY --from=assets /srv/crossdiff/frontend/node_modules frontend/node_modules
COPY alembic.ini ./
COPY alembic alembic
COPY frontend frontend
COPY trainer trainer
COPY app app

RUN useradd --create-home --uid 1000 crossdiff && install -d -o crossdiff /data
USER 1000
ENV CROSSDIFF_HOME=/data \
    HF_HOME=/data/hub \
    CROSSDIFF_HOST=0.0.0.0
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["crossdiff"]
CMD ["serve"]
