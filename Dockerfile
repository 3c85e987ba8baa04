# docker build -t repnext_mm .                        for a CPU
# docker build -t repnext_mm --build-arg TORCH= .     with CUDA, from the package index; run it with --gpus all
FROM python:3.12-slim
ARG TORCH=cpu
RUN apt-get update && apt-get install -y --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /repnext_mm
COPY . .
RUN make env TORCH=$TORCH VENV=.venv
ENV PATH=/repnext_mm/.venv/bin:$PATH
CMD ["python", "tools/check_env.py"]
