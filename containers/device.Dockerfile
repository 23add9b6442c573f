# docker build -f containers/device.Dockerfile -t fedsim-device . && docker run --read-only --tmpfs /tmp -v "$PWD:/device" fedsim-device
# A device neither draws nor tabulates: what device.txt leaves out of fedsim's dependencies is not in the image.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY fedsim fedsim
COPY strategies strategies
COPY attacks attacks
COPY datasets datasets
COPY experiments experiments
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY containers/device.txt /requirements.txt
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu --requirement /requirements.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl
RUN useradd --create-home fedsim && install -d -o fedsim /device /trial
USER fedsim
WORKDIR /device
ENV OMP_NUM_THREADS=1
ENTRYPOINT ["fedsim", "deploy", "device"]
CMD ["."]
