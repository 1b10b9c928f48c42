# SPDX-License-Identifier: Apache-2.0
# The image of owned-by, for linux/amd64 and linux/arm64. RELEASING.md says how it is built and what was tried.
# No RUN here needs a shell or a compiler: each is one program and its words. tests/release executes them.

# The digest is that of the index: each platform finds its own image in it.
FROM python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/owned-by
COPY requirements/image.txt requirements/build.txt requirements/
RUN python -m pip --python /opt/owned-by/bin/python install --no-compile \
  --require-hashes --only-binary :all: -r requirements/image.txt
RUN python -m pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY extproc extproc
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .
# With its requirements, and no index: what the lock lacks ends the build here.
RUN python -m pip --python /opt/owned-by/bin/python install --no-compile \
  --no-index --find-links /wheels "owned-by-extproc[otel]"
# The root file system is read-only at run time, so bytecode is written now; by hash, so that no file's time is in it.
RUN python -m compileall -q -f --invalidation-mode unchecked-hash /opt/owned-by/lib

FROM python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
ENV PATH=/opt/owned-by/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# The base has pip, which nothing here needs, and no bytecode of the standard library, which every start needs.
RUN python -m pip uninstall --yes --root-user-action ignore pip
RUN python -m compileall -q -f --invalidation-mode unchecked-hash /usr/local/lib
COPY --from=build /opt/owned-by /opt/owned-by
# Behind all that is built: a layer that follows an ARG is made anew, and pulled anew, for each of its values.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title=owned-by \
      org.opencontainers.image.description="Routing by who serves the model (owned_by), as an Envoy ext_proc server" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.created=$CREATED \
      org.opencontainers.image.base.name=docker.io/library/python:3.13.15-slim-trixie \
      org.opencontainers.image.base.digest=sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
USER 65532:65532
EXPOSE 9002 9003 9090
ENTRYPOINT ["owned-by"]
CMD ["serve"]
