# make build   bin/snapd and bin/snapctl
# make run     a demonstration on this machine: a real image, a slow link, a cold and a warm start
# make test    everything that can be tested here; as root also mounts and containers
# make peers   containerd and others that tests want, built from their modules once, into the user's cache (5 minutes)
# make lint    gofmt, vet, staticcheck
# make bench   a short comparison of cold starts, and the benchmarks beside the code (see bench/README.md for all of it)

GO ?= go
BIN ?= bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Without gRPC's pages for golang.org/x/net/trace, and html/template with them: 4 MB
# of snapd, 3 MB of memory in each of its processes.
TAGS = grpcnotrace
LDFLAGS = -s -w -X main.version=$(VERSION)
# Where snapctl begins: called snaprun, it moves to a read-only mount of itself before
# its Go runtime starts, not after that, which would cost a start 1.7 ms (runtime/seal_amd64.s).
ifeq ($(shell $(GO) env GOARCH),amd64)
ENTRY = -E snapfs_entry
endif
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

export CGO_ENABLED ?= 0

.PHONY: build run peers test test-race lint bench clean
build:
	$(GO) build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -ldflags './cmd/snapctl=$(LDFLAGS) $(ENTRY)' -o '$(BIN)/' ./cmd/snapd ./cmd/snapctl
	ln -sf snapctl '$(BIN)/snaprun'

run: build
	$(GO) run ./bench/demo

peers:
	$(GO) run ./bench/peers

test: build peers
	@scripts/need e2fsprogs erofs-utils busybox-static runc crun nftables qemu-system-x86
	@scripts/kernel
	$(GO) vet ./...
	$(GO) test ./...
	$(GO) test -count=1 ./integration -run TestKernel61 # it builds what go test does not know of

# The race detector is the one thing here that wants a C compiler.
test-race:
	@scripts/need gcc libc6-dev e2fsprogs erofs-utils busybox-static nftables
	CGO_ENABLED=1 $(GO) test -race ./...

lint:
	@test -z "$$(gofmt -l .)" || { echo 'gofmt would change:'; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

bench: build
	@scripts/need runc pigz e2fsprogs
	$(GO) run ./bench/coldstart -short -snapfs bin
	$(GO) test -run '^$$' -bench . -benchmem ./...

clean:
	rm -rf bin
