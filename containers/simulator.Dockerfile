# docker build -f containers/simulator.Dockerfile -t fedsim . && docker run --rm -v "$PWD/runs:/studies/runs" fedsim run quickstart
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
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu /wheels/*.whl
COPY containers/setup.sh /usr/local/share/fedsim/setup.sh
RUN useradd --create-home fedsim && install -d -o fedsim /studies /trial
USER fedsim
WORKDIR /studies
ENTRYPOINT ["fedsim"]
CMD ["--help"]
