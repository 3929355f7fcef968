# An image with everything the quickstart needs: docker build -t maskgit . && docker run --rm -v "$PWD/runs:/data/runs" maskgit run quickstart
# --build-arg TORCH_INDEX=URL takes PyTorch from its index for the CPU alone (a smaller image) or for another CUDA version;
# for NVIDIA GPUs: docker run --gpus all.
FROM python:3.11-slim
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY maskgit_core maskgit_core
COPY experiments experiments
COPY launchers launchers
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint constraints.txt .
WORKDIR /data
ENV MASKGIT_STORE=/data/runs
ENTRYPOINT ["maskgit"]
CMD ["--help"]
