# What the project can do, each in one command. `make help` lists it.
PREFIX ?= /usr/local
DESTDIR ?=
CARGO_TARGET_DIR ?= target

.PHONY: help build demo test lint bench microbench fuzz soak doc install

help:
	@echo 'make build       build sluice (target/release/sluice)'
	@echo 'make demo        install what is missing, build, boot a Linux guest on a disk, run fio in it: a table at the end'
	@echo 'make test        every check of the project, unattended'
	@echo 'make lint        format and lints only'
	@echo 'make bench       measure sluice beside other backends, in a quarter of an hour; BENCH=... for options of sluice bench'
	@echo 'make microbench  how long a request takes without any I/O, in nanoseconds and in instructions'
	@echo 'make fuzz        fuzz in one process: TARGET=all (chains, messages, inflight, config) for SECONDS=600 each'
	@echo 'make soak        100,000 kills, 10,000 upgrades, a million power cuts, a hundred million requests and four million messages of the worst kind: hours'
	@echo 'make doc         the documentation of the crates, in target/doc'
	@echo 'make install     install sluice below PREFIX ($(PREFIX)), with the file by which libvirt finds it'

build:
	cargo build --release --locked -p sluice-launcher

demo:
	scripts/demo.sh

test:
	scripts/test.sh

lint:
	scripts/test.sh lint

bench:
	scripts/bench.sh $(BENCH)

microbench:
	cargo bench --locked -p sluice-backend
	scripts/instructions.sh

fuzz:
	scripts/fuzz.sh $(or $(TARGET),all) $(or $(SECONDS),600)

soak:
	cargo build --locked -p sluice-launcher
	SLUICE_KILLS=100000 SLUICE_UPGRADES=10000 SLUICE_POWER_CUTS=1000000 \
	  cargo test --locked -p sluice-tests --test kill --test upgrade --test power -- --nocapture
	SLUICE_WIRE_REQUESTS=100000000 SLUICE_MESSAGES=4000000 \
	  cargo test --locked -p sluice-tests --test wire_fuzz --test message_fuzz -- --nocapture

doc:
	cargo doc --locked --workspace --no-deps

install: build
	install -D -m 755 '$(CARGO_TARGET_DIR)/release/sluice' '$(DESTDIR)$(PREFIX)/bin/sluice'
	install -d '$(DESTDIR)$(PREFIX)/share/qemu/vhost-user'
	sed 's|@bindir@|$(PREFIX)/bin|' share/50-sluice.json > '$(DESTDIR)$(PREFIX)/share/qemu/vhost-user/50-sluice.json'
