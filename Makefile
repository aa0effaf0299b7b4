# ResNet-18 on CIFAR-10 with mixup and label smoothing, from scratch. `make help` lists the targets.

ifeq ($(origin CC),default)
CC := gcc
endif

# -std=c11 alone would keep a*b+c from becoming one fused multiply-add: -ffp-contract=fast allows it,
# which changes no result by more than leaving out a rounding. -fno-trapping-math -fno-math-errno give
# up the processor's exception flags and errno, which nothing here reads, so that `y <= 0 ? 0 : dy`
# can be vectorised; no value changes. No flag here trades exactness for speed.
# -Wno-format-truncation: snprintf's cutting at the end of its buffer is what it is used for.
NATIVE := $(shell for flag in -march=native -mcpu=native; do \
  echo 'int x;' | $(CC) $$flag -x c -c -o /dev/null - 2>/dev/null && echo $$flag && break; done)
WARNINGS := -Wall -Wextra -Werror
ifneq ($(findstring clang,$(shell $(CC) --version 2>/dev/null)),)
WARNINGS += -Wno-pass-failed # clang's word for: this simd loop stayed scalar, as at -O1 they do
else
WARNINGS += -Wno-format-truncation
endif
CFLAGS ?= -O3 -g
OUR_CFLAGS := -std=c11 $(NATIVE) -ffp-contract=fast -fno-trapping-math -fno-math-errno \
  -fopenmp -I. -MMD -MP $(WARNINGS)
LIBRARIES := -lm

# `make check SAN=1`: everything again under AddressSanitizer and UndefinedBehaviorSanitizer.
ifdef SAN
CFLAGS := -O2 -g -fsanitize=address,undefined -fno-sanitize-recover=all
VARIANT := -san
endif

BUILD := build/$(notdir $(CC))$(VARIANT)
TRAIN := $(BUILD)/train
SHAPES := $(BUILD)/shapes

LIBRARY := random.c files.c safetensors.c checkpoint.c cifar.c network.c options.c report.c \
  $(wildcard reference/*.c) $(wildcard cpu/*.c)
# The same network and operations in double precision, for finite differences.
DOUBLE := random.c files.c safetensors.c network.c $(wildcard reference/*.c)
TESTS := $(filter-out gradients_test,$(basename $(notdir $(wildcard tests/*_test.c))))
DOUBLE_TESTS := gradients_test golden_test

OBJECTS := $(LIBRARY:%.c=$(BUILD)/%.o)
DOUBLE_OBJECTS := $(DOUBLE:%.c=$(BUILD)/double/%.o)
TEST_PROGRAMS := $(TESTS:%=$(BUILD)/tests/%) $(DOUBLE_TESTS:%=$(BUILD)/double/%)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help build train data check bench fuzz format clean FORCE

help:
	@echo 'make train        build, get CIFAR-10 (or a stand-in where there is no network), and train'
	@echo '                  DATA=DIR: files that are there already; ARGS="--epochs 9 ..": options'
	@echo 'make check        run all checks: no network, no PyTorch, no GPU needed'
	@echo '                  V=1: a line for each check; SAN=1: under address and undefined sanitizers'
	@echo 'make bench        how fast: each operation, and whole steps beside PyTorch'
	@echo '                  PYTHON=python3: one that can import torch; BENCH_DEVICE=cpu'
	@echo 'make build        build all that this machine can'
	@echo 'make data         download CIFAR-10 into data/ (CIFAR_URL=, CIFAR_TAR=FILE)'
	@echo 'make data/stand-in   the generated stand-in set'
	@echo 'make fuzz         a minute of libFuzzer on the readers of data and checkpoints (clang)'
	@echo 'make format       clang-format on all sources'
	@echo 'make clean        remove what was built; data and checkpoints stay'

build: $(TRAIN) $(SHAPES) $(TEST_PROGRAMS)
	@cp -f $(TRAIN) $(SHAPES) .
	@echo "built ./train with $(CC) $(NATIVE): devices cpu, reference"

LINK = @$(CC) $(CFLAGS) $(OUR_CFLAGS) $^ -o $@ $(LIBRARIES)

$(TRAIN): $(BUILD)/train.o $(OBJECTS)
	$(LINK)

$(SHAPES): $(BUILD)/shapes.o $(BUILD)/random.o $(BUILD)/files.o
	$(LINK)

$(BUILD)/double/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo '$(CC) -DREAL=double $<'
	@$(CC) $(CFLAGS) $(OUR_CFLAGS) -DREAL=double -DDOUBLE -c $< -o $@

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo '$(CC) $<'
	@$(CC) $(CFLAGS) $(OUR_CFLAGS) -c $< -o $@

$(DOUBLE_TESTS:%=$(BUILD)/double/%): $(BUILD)/double/%: $(BUILD)/double/tests/%.o $(DOUBLE_OBJECTS)
	$(LINK)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(OBJECTS)
	$(LINK)

# Objects are built again when the compiler's flags change.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(CFLAGS) $(OUR_CFLAGS)' | cmp -s - $@ || echo '$(CC) $(CFLAGS) $(OUR_CFLAGS)' >$@

# -- Data and training ------------------------------------------------------------------------------

data:
	@./data.sh

data/stand-in: | $(SHAPES)
	$(SHAPES) --seed 1 $@

train: $(TRAIN) $(SHAPES)
	@cp -f $(TRAIN) $(SHAPES) .
	@if [ -n "$(DATA)" ]; then data="$(DATA)"; \
	elif ./data.sh; then data=data/cifar-10-batches-bin; \
	else echo "CIFAR-10 could not be had: training on generated stand-in shapes instead"; \
	  $(MAKE) --no-print-directory data/stand-in && data=data/stand-in; fi && \
	./train --preset quick --data "$$data" $(ARGS)

# -- Checks ---------------------------------------------------------------------------------------------

# For have_threads_sleep's reason, in train.c.
check: export OMP_WAIT_POLICY := passive
check: $(TRAIN) $(SHAPES) $(TEST_PROGRAMS)
	@tests/run.sh $(TEST_PROGRAMS) "tests/train_test.sh $(TRAIN) $(SHAPES)" tests/data_test.sh

# -- Speed ------------------------------------------------------------------------------------------------

PYTHON ?= python3
BENCH_DEVICE ?= cpu

$(BUILD)/bench/bench: $(BUILD)/bench/bench.o $(OBJECTS)
	$(LINK)

bench: export OMP_WAIT_POLICY := passive
bench: $(BUILD)/bench/bench
	@python=$(PYTHON); $(PYTHON) -c 'import torch' 2>/dev/null || { python=; \
	  echo 'no PyTorch to compare with: pip install torch, or PYTHON=.. where it is installed'; }; \
	$(BUILD)/bench/bench $(BENCH_DEVICE) "$$python" build/bench.json

# -- Fuzzing ----------------------------------------------------------------------------------------------

FUZZ_SECONDS ?= 60
FUZZ_FLAGS := -std=c11 -g -O1 -I. -Wall -Wextra -Werror -fsanitize=fuzzer,address,undefined \
  -fno-sanitize-recover=all

# clang whatever $(CC) is: libFuzzer is its own.
build/fuzz/fuzz: tests/fuzz.c cifar.c safetensors.c files.c random.c $(wildcard *.h)
	@mkdir -p $(@D)
	clang $(FUZZ_FLAGS) $(filter %.c,$^) -o $@ -lm

# A sound file of each kind to start from; what the fuzzer finds interesting joins them.
fuzz: build/fuzz/fuzz
	@mkdir -p build/fuzz/corpus
	@(printf c; head -c 6146 /dev/zero) >build/fuzz/corpus/cifar
	@printf 's\002\0\0\0\0\0\0\0{}' >build/fuzz/corpus/safetensors
	@printf 'h{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"n":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}\0sixteen bytes...' \
	  >build/fuzz/corpus/header
	build/fuzz/fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 -print_final_stats=1 \
	  -artifact_prefix=build/fuzz/ build/fuzz/corpus

# -- The rest ---------------------------------------------------------------------------------------------

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

clean:
	rm -rf build train shapes

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
