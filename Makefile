# The work is in the scripts; make only calls them.
.PHONY: all build test lint ci bench try packages clean
all: build
build: ; contrib/build
test: ; contrib/test
lint: ; contrib/build golangci-lint && bin/golangci-lint run ./...
ci: ; .ci/run
bench: ; contrib/bench/run
try: ; contrib/try
packages: ; packaging/build
clean: ; rm -rf bin dist
