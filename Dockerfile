# qexp on NVIDIA's PyTorch image, with the torch, torchvision, NCCL and apex that NVIDIA built.
#
#   docker build -t qexp .
#   docker run --gpus all --ipc=host --rm -it -v "$PWD/runs:/qexp/runs" -v "$PWD/results:/qexp/results" qexp \
#     python -m qexp.train bits=4,8,16 -m
#
# --ipc=host: DataLoader workers and NCCL pass tensors through shared memory, of which a container has 64 MB by default.
ARG PYTORCH_TAG=26.03-py3
FROM nvcr.io/nvidia/pytorch:${PYTORCH_TAG}

# The image makes pip obey a constraint file of its own, which refuses newer versions of what MLflow needs.
ENV PIP_CONSTRAINT= \
    PIP_NO_CACHE_DIR=1 \
    MLFLOW_DISABLE_TELEMETRY=true

WORKDIR /qexp

# Everything that pyproject.toml names but torch and torchvision. The image's torch calls itself a pre-release (2.11.0a0+...),
# which `torch>=2.11` would not accept, and pip would put another build in its place. A layer of its own: code changes do not
# install anything again.
COPY pyproject.toml ./
RUN python -c "import re, tomllib; wanted = tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']; \
print(*[name for name in wanted if re.match(r'[\w-]+', name)[0] not in ('torch', 'torchvision')], sep='\n')" > /tmp/requirements.txt \
 && pip install -r /tmp/requirements.txt \
 && pip install "hatchling>=1.27"

COPY README.md LICENSE ./
COPY qexp qexp
COPY conf conf
RUN pip install --no-deps --no-build-isolation -e . \
 && python -c "import torch; from qexp.base.torchvision_compat import torchvision; print(torch.__version__, torchvision().__version__)"

CMD ["python", "-m", "qexp.train", "--help"]
