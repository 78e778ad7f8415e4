# docker build -t triptych . && docker run --rm -p 127.0.0.1:8000:8000 -e TRIPTYCH_API_KEY=... -v triptych:/cache triptych
# --build-arg EXTRAS=serve,library,torch adds PyTorch: GPUs, published checkpoints, and where Flamingo and BLIP-2 looked. Without a GPU,
# --build-arg PIP_EXTRA_INDEX_URL=ADDRESS of PyTorch's CPU builds then saves several GB.
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL=
ARG EXTRAS=serve,library
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 TRIPTYCH_HOME=/cache HF_HOME=/cache/huggingface
WORKDIR /app
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN pip install ".[$EXTRAS]" \
 && useradd --create-home triptych && mkdir /cache && chown triptych /cache
USER triptych
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz')"]
ENTRYPOINT ["triptych", "serve", "--host", "0.0.0.0"]
