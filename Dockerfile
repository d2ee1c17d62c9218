# sb3-sparse with its native engine, rl-zoo3 and MuJoCo, for the CPU:
#   docker build -t sb3-sparse . && docker run --rm -v "$PWD/logs:/training/logs" sb3-sparse \
#       train --method rlx2 --algo td3 --env Hopper-v4 -n 20000
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN pip wheel --no-deps -w /wheels .

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libegl1 libgl1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/constraints.txt
RUN pip install --no-cache-dir -c /wheels/constraints.txt torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -c /wheels/constraints.txt "$(ls /wheels/*.whl)[zoo,mujoco,tuning]"
ENV OMP_NUM_THREADS=1 MUJOCO_GL=egl
WORKDIR /training
ENTRYPOINT ["sb3-sparse"]
CMD ["--help"]
