# ResNet-18 on CIFAR-10 with mixup and label smoothing, from scratch. `make help` lists the targets.

comma := ,

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
# A newer compiler may warn of what no compiler did when this was written: make WERROR= builds in spite of it.
WERROR ?= -Werror
# -Wno-psabi: how cpu-bf16's 16 floats are passed to functions differs between processors. All are inline.
WARNINGS := -Wall -Wextra $(WERROR) -Wno-psabi
ifneq ($(findstring clang,$(shell $(CC) --version 2>/dev/null)),)
WARNINGS += -Wno-pass-failed # clang's word for: this simd loop stayed scalar, as at -O1 they do
else
WARNINGS += -Wno-format-truncation
endif
CFLAGS ?= -O3 -g
OUR_CFLAGS := -std=c11 $(NATIVE) -ffp-contract=fast -fno-trapping-math -fno-math-errno \
  -fopenmp -I. -MMD -MP $(WARNINGS)
LIBRARIES := -lm

# `make check SAN=1`: the checks again under AddressSanitizer and UndefinedBehaviorSanitizer, but for what
# SLOW and WATCHED_CHECKS say.
ifdef SAN
CFLAGS := -O2 -g -fsanitize=address,undefined -fno-sanitize-recover=all
VARIANT := -san
endif

# The last word, for CC='ccache gcc'.
BUILD := build/$(notdir $(lastword $(CC)))$(VARIANT)
TRAIN := $(BUILD)/train
SHAPES := $(BUILD)/shapes

LIBRARY := cifar.c network.c $(wildcard run/*.c) $(wildcard reference/*.c) $(wildcard cpu/*.c) $(wildcard cpu-bf16/*.c)
# The same network and operations in double precision, for finite differences.
DOUBLE := network.c run/layers.c run/random.c run/files.c run/safetensors.c $(wildcard reference/*.c)
TESTS := $(filter-out gradients_test,$(basename $(notdir $(wildcard tests/*_test.c))))
DOUBLE_TESTS := gradients_test golden_test

# -- GPU: the .cu files, compiled by g++ on the simulator, and by nvcc where there is one ------------

KERNELS := $(wildcard *.cu) $(wildcard gpu/*.cu)
# clang++-14 for clang-14, g++-11 for gcc-11, whatever their directory is called; g++ for a cc of another name.
cxx_name = $(if $(findstring clang,$1),$(subst clang,clang++,$1),$(subst gcc,g++,$1))
cxx_path = $(if $(findstring /,$1),$(dir $1))$(call cxx_name,$(notdir $1))
CXX_OF_CC := $(if $(findstring clang,$(notdir $(CC)))$(findstring gcc,$(notdir $(CC))),$(foreach word,$(CC),$(call cxx_path,$(word))),g++)
# -fno-strict-aliasing: kernels load and store eight bf16 as one uint4, as is usual in CUDA, and nvcc takes no
# offence; standard C++ would.
OUR_CXXFLAGS := -std=c++17 $(NATIVE) -ffp-contract=fast -fno-trapping-math -fno-math-errno -fno-strict-aliasing \
  -fno-exceptions -fno-rtti -I. -MMD -MP -Wall -Wextra -Wno-unknown-pragmas $(WERROR)
SIMT_FLAGS ?= -O2 -g

# nvcc: NVCC=, or on the PATH, or where the toolkit puts it. NVCC= with nothing behind it: without CUDA.
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
# ARCH=sm_90 builds for one GPU; by default for the one that nvidia-smi names, else for all from
# sm_80 on: machine code for two, and PTX that the driver compiles for those that came later.
DETECTED := $(if $(NVCC),$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader \
  2>/dev/null | head -1 | sed -n 's/^\([0-9]*\)\.\([0-9]\)$$/sm_\1\2/p'))
# An nvcc does not know GPUs that are much newer or much older than itself: for these, too, it builds for all.
KNOWN := $(if $(NVCC),$(shell $(NVCC) --list-gpu-code 2>/dev/null))
known = $(if $(KNOWN),$(filter $(KNOWN),$1),$1)
ARCH ?= $(call known,$(DETECTED))
ALL_ARCHS := $(call known,sm_80 sm_90)
NEWEST := $(patsubst sm_%,compute_%,$(lastword $(ALL_ARCHS)))
CODE := $(if $(ARCH),-arch=$(ARCH),$(foreach arch,$(ALL_ARCHS),-gencode arch=$(arch:sm_%=compute_%),code=$(arch)) \
  -gencode arch=$(NEWEST),code=$(NEWEST))
NVCC_FLAGS := -std=c++17 -O3 -lineinfo $(CODE) -I. -MMD -MP $(if $(WERROR),-Werror all-warnings) \
  -Xcompiler -Wall,-Wextra$(if $(WERROR),$(comma)-Werror)
SIMULATOR := $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard simt/*.cpp))
GPU_OBJECTS := $(KERNELS:%.cu=$(BUILD)/simt/%.o) $(SIMULATOR)
ifneq ($(NVCC),)
CUDA_OBJECTS := $(KERNELS:%.cu=$(BUILD)/cuda/%.o)
# Where the toolkit is; a plain NVCC=nvcc is on the PATH. Its libraries are in lib64, in conda's elsewhere.
TOOLKIT := $(abspath $(dir $(realpath $(shell command -v $(lastword $(NVCC)))))..)
CUDA_LIBRARIES := $(patsubst %,-L%,$(wildcard $(addprefix $(TOOLKIT)/,lib64 lib targets/*/lib))) -lcudart_static -ldl -lrt -lpthread -lstdc++
# private: else what it depends on would be built with it too, $(BUILD)/flags among it.
$(BUILD)/run/devices.o: private OUR_CFLAGS += -DHAVE_CUDA
endif

OBJECTS := $(LIBRARY:%.c=$(BUILD)/%.o) $(GPU_OBJECTS) $(CUDA_OBJECTS)

# The same kernels once more, each access to memory a call to the hooks of simt/watch.cpp, and each index beyond its
# array as well: that is what -fsanitize=thread,bounds does without its libraries. Always g++ at -O1, which leaves a
# 16-byte load one load. Address sanitizer cannot be had at the same time, so SAN=1 does without them.
WATCH_FLAGS := -O1 -g -fno-tree-vectorize -fno-tree-sra -fno-optimize-sibling-calls -fsanitize=thread,bounds \
  -fno-sanitize-recover=bounds
WATCHED := $(KERNELS:%.cu=$(BUILD)/watched/%.o) $(SIMULATOR)
ifdef SAN
SIMT_FLAGS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
else
WATCHED_C_TESTS := $(BUILD)/watched/kernels_test $(BUILD)/watched/recording_test
WATCHED_PROGRAMS := $(BUILD)/watched/simt_test $(WATCHED_C_TESTS)
WATCHED_CHECKS := $(BUILD)/watched/simt_test $(BUILD)/watched/recording_test \
  '$(BUILD)/watched/kernels_test quick unguarded'
TESTS := $(filter-out recording_test,$(TESTS)) # watched is enough
endif
DOUBLE_OBJECTS := $(DOUBLE:%.c=$(BUILD)/double/%.o)
TEST_PROGRAMS := $(TESTS:%=$(BUILD)/tests/%) $(DOUBLE_TESTS:%=$(BUILD)/double/%)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help build found ptx-report sass-report sanitize simt-report cost mutants faults environments \
  train data data/stand-in check bench fuzz format clean FORCE

help:
	@echo 'make train        build, get CIFAR-10 (or a stand-in where there is no network), and train'
	@echo '                  DATA=DIR: files that are there already; ARGS="--epochs 9 ..": options'
	@echo 'make check        run all checks: no network, no PyTorch, no GPU needed'
	@echo '                  V=1: a line for each check; SAN=1: under address and undefined sanitizers'
	@echo 'make bench        how fast: each operation, and whole steps beside PyTorch'
	@echo '                  PYTHON=python3: one that can import torch; BENCH_DEVICE=cpu, cpu-bf16 or cuda'
	@echo 'make experiment   what mixup and smoothing bring: four variants, three seeds (RECIPE=, SEEDS=, JOBS=)'
	@echo 'make pictures     draw the pictures of the course (DATA=DIR: from CIFAR-10, into build/pictures)'
	@echo 'make ladder       six kernels from a plain one to conv.cu, and what each costs'
	@echo 'make exercise     ten kernels to write: N=1 checks the first, and says what is wrong and what it costs'
	@echo 'make bug          twelve broken kernels to mend: N=1 begins, SOLVE=1 gives up'
	@echo 'make course-check check what belongs to the course'
	@echo 'make build        build all that this machine can, and say what that is'
	@echo 'make ptx-report   registers, shared and local memory, spills of each GPU kernel (nvcc)'
	@echo 'make sass-report  what their main loops execute for each product of the tensor cores (nvcc)'
	@echo 'make simt-report  bank conflicts and memory traffic of each, counted by the simulator'
	@echo 'make cost         what a step costs, launch by launch, and the least it takes on some GPUs'
	@echo 'make mutants      plant bugs, one at a time; the checks must notice each of them'
	@echo 'make faults       strike each call of short runs: full disks, bad disks, no memory, kills (minutes)'
	@echo '                  FAULTS=N/M: the N-th of M parts'
	@echo 'make environments the quick checks with other locales, users, directories'
	@echo 'make sanitize     compute-sanitizer over the checks of the kernels (a GPU)'
	@echo 'make data         download CIFAR-10 into data/ (CIFAR_URL=, CIFAR_TAR=FILE)'
	@echo 'make data/stand-in   the generated stand-in set'
	@echo 'make fuzz         a minute of libFuzzer on files, settings and command lines (clang)'
	@echo 'make format       clang-format on all sources'
	@echo 'make clean        remove what was built; data, checkpoints and your work on the bugs stay'

build: found $(TRAIN) $(SHAPES) $(TEST_PROGRAMS) $(WATCHED_PROGRAMS)
	@cp -f $(TRAIN) $(SHAPES) . 2>/dev/null || \
	  echo "  ✗ this directory cannot be written: what is called ./train below is $(TRAIN)"
	@echo "built ./train: devices cpu, cpu-bf16, reference, simt$(if $(NVCC),$(comma) cuda)"

# What was found on this machine, and what that means.
found:
	@echo "  ✓ $(CC) $(NATIVE): $(shell $(CC) --version | head -1)"
ifneq ($(NVCC),)
	@echo "  ✓ $(NVCC): $(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release/CUDA/p')"
ifneq ($(DETECTED),)
	@echo "  $(if $(ARCH),✓ GPU: $(DETECTED),✗ GPU: $(DETECTED)$(comma) which this nvcc does not know); building for $(or $(ARCH),$(ALL_ARCHS))"
else
	@echo "  ✗ no GPU answers nvidia-smi: building for $(if $(ARCH),$(ARCH),$(ALL_ARCHS); ARCH=sm_NN for another)"
endif
else
	@echo "  ✗ no nvcc on the PATH or in /usr/local/cuda (NVCC=FILE names one): no cuda device"
endif

ALL_FLAGS = $(CC) $(CFLAGS) $(OUR_CFLAGS) $(CXX_OF_CC) $(SIMT_FLAGS) $(WATCH_FLAGS) $(OUR_CXXFLAGS) $(NVCC) $(NVCC_FLAGS)

LINK = @$(CC) $(CFLAGS) $(OUR_CFLAGS) $^ -o $@ $(CUDA_LIBRARIES) $(LIBRARIES)

$(TRAIN): $(BUILD)/train.o $(OBJECTS)
	$(LINK)

$(SHAPES): $(BUILD)/tools/shapes.o $(BUILD)/cifar.o $(BUILD)/run/random.o $(BUILD)/run/files.o
	$(LINK)

$(BUILD)/double/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo '$(CC) -DREAL=double $<'
	@$(CC) $(CFLAGS) $(OUR_CFLAGS) -DREAL=double -DDOUBLE -c $< -o $@

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo '$(CC) $<'
	@$(CC) $(CFLAGS) $(OUR_CFLAGS) -c $< -o $@

$(BUILD)/simt/%.o: %.cu $(BUILD)/flags
	@mkdir -p $(@D)
	@echo '$(CXX_OF_CC) (simulated GPU) $<'
	@$(CXX_OF_CC) $(SIMT_FLAGS) $(OUR_CXXFLAGS) -x c++ -c $< -o $@

$(BUILD)/simt/%.o: simt/%.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo '$(CXX_OF_CC) $<'
	@$(CXX_OF_CC) $(SIMT_FLAGS) $(OUR_CXXFLAGS) -c $< -o $@

$(BUILD)/watched/%.o: %.cu $(BUILD)/flags
	@mkdir -p $(@D)
	@echo 'g++ (simulated GPU, watched) $<'
	@g++ $(WATCH_FLAGS) $(OUR_CXXFLAGS) -x c++ -c $< -o $@

$(BUILD)/bench/%.o: bench/%.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo '$(CXX_OF_CC) $<'
	@$(CXX_OF_CC) $(SIMT_FLAGS) $(OUR_CXXFLAGS) -c $< -o $@

$(BUILD)/watched/%.o: tests/%.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo 'g++ (simulated GPU, watched) $<'
	@g++ $(WATCH_FLAGS) $(OUR_CXXFLAGS) -c $< -o $@

$(BUILD)/watched/simt_test: $(BUILD)/watched/simt_test.o $(SIMULATOR)
	$(LINK)

$(WATCHED_C_TESTS): $(BUILD)/watched/%: $(BUILD)/tests/%.o $(LIBRARY:%.c=$(BUILD)/%.o) $(WATCHED) \
  $(CUDA_OBJECTS)
	$(LINK)

$(BUILD)/cuda/%.o: %.cu $(BUILD)/flags
	@mkdir -p $(@D)
	@echo 'nvcc $(if $(ARCH),$(ARCH),sm_80 sm_90) $<'
	@$(NVCC) $(NVCC_FLAGS) -c $< -o $@

$(DOUBLE_TESTS:%=$(BUILD)/double/%): $(BUILD)/double/%: $(BUILD)/double/tests/%.o $(DOUBLE_OBJECTS)
	$(LINK)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(OBJECTS)
	$(LINK)

$(BUILD)/tests/wiring_test: | $(TRAIN) # which it runs

# Objects are built again when the compiler's flags change.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(ALL_FLAGS)' | cmp -s - $@ || echo '$(ALL_FLAGS)' >$@

# -- Data and training ------------------------------------------------------------------------------

data:
	@tools/data.sh

# The last of its files to get a name: where it is, the set is whole (tools/shapes.c).
data/stand-in/test_batch.bin: | $(SHAPES)
	$(SHAPES) --seed 1 $(@D)

data/stand-in: data/stand-in/test_batch.bin

# For a shell: sets data to DATA=, to CIFAR-10's place once it is there, or to the stand-in set's. That is for
# where there is no network, and not for a mistake in CIFAR_TAR= or in what is there, which has its line already.
FIND_DATA = cifar="$${DATA_DIR:-data}/cifar-10-batches-bin"; \
	if [ -n "$(DATA)" ]; then data="$(DATA)"; \
	elif tools/data.sh; then data="$$cifar"; \
	elif [ -n "$$CIFAR_TAR" ] || [ -e "$$cifar" ]; then exit 1; \
	else echo "CIFAR-10 could not be had: training on generated stand-in shapes instead"; \
	  $(MAKE) --no-print-directory data/stand-in && data=data/stand-in; fi

train: $(TRAIN) $(SHAPES)
	@cp -f $(TRAIN) $(SHAPES) . 2>/dev/null || true
	@$(FIND_DATA) && $(TRAIN) --preset quick --data "$$data" $(ARGS)

# -- Checks ---------------------------------------------------------------------------------------------

# For have_threads_sleep's reason, in run/process.c.
check: export OMP_WAIT_POLICY := passive
# A GPU that is there has to be checked.
ifneq ($(and $(DETECTED),$(ARCH)),)
check: export GPU_EXPECTED := $(DETECTED)
endif
# Under the sanitizers simulated kernels and plain tiles take ten times as long and more: the small shapes
# have to do there, and runs of the trainer on the CPU.
SLOW := $(if $(SAN),$(BUILD)/tests/kernels_test $(BUILD)/tests/tiles_test $(BUILD)/tests/step_test)
check: $(TRAIN) $(SHAPES) $(TEST_PROGRAMS) $(WATCHED_PROGRAMS)
	@tests/run.sh "tests/train_test.sh $(TRAIN) $(SHAPES) $(if $(SAN),quick)" $(filter-out $(SLOW),$(TEST_PROGRAMS)) \
	  $(if $(SAN),'$(BUILD)/tests/kernels_test quick' '$(BUILD)/tests/tiles_test quick') $(WATCHED_CHECKS) \
	  "tests/data_test.sh $(TRAIN) $(SHAPES)"

# Registers, shared memory, local memory and spills of each kernel, from nvcc's assembler.
ptx-report:
	@tests/ptx_report.sh "$(NVCC)" $(filter-out gpu/gpu.cu,$(KERNELS))

# Bank conflicts and memory traffic of each kernel, counted by the simulator.
simt-report: $(BUILD)/watched/kernels_test
	@SIMT_REPORT=1 $< simt network unguarded | sed -n '/^kernel /,$$p'

# What a step costs, launch by launch, and the least that some cards need for it.
$(BUILD)/bench/cost: $(BUILD)/bench/cost.o $(LIBRARY:%.c=$(BUILD)/%.o) $(WATCHED) $(CUDA_OBJECTS)
	$(LINK)

cost: $(BUILD)/bench/cost
	@$<

# What the main loops of the tensor cores' kernels consist of, from nvcc's machine code.
CUOBJDUMP ?= $(firstword $(shell command -v cuobjdump) $(TOOLKIT)/bin/cuobjdump)
sass-report: $(BUILD)/cuda/conv.o
	@tests/sass_report.sh "$(CUOBJDUMP)" $^

# NVIDIA's own checkers over the checks of the kernels, on a machine with a GPU: all in one process, the one that
# the checker starts.
SANITIZER ?= $(firstword $(shell command -v compute-sanitizer) $(TOOLKIT)/bin/compute-sanitizer)
sanitize: $(BUILD)/tests/kernels_test
	@[ -n "$(DETECTED)" ] || { echo "sanitize needs an NVIDIA GPU, and none answers nvidia-smi" >&2; exit 1; }
	for tool in memcheck racecheck initcheck synccheck; do \
	  for device in cuda cuda-plain; do \
	    GPU_SANITIZED=1 $(SANITIZER) --tool $$tool --error-exitcode 1 \
	      $(BUILD)/tests/kernels_test $$device quick || exit 1; done; done

# Every call of three short runs struck in turn; tests/faults.c says how.
$(BUILD)/tests/faults: $(BUILD)/tests/faults.o $(BUILD)/tests/faults_trace.o $(BUILD)/run/files.o
	$(LINK)

$(BUILD)/tests/faults_preload.so: tests/faults_preload.c tests/faults.h
	@mkdir -p $(@D)
	@$(CC) -std=c11 -O2 -I. $(WARNINGS) -fPIC -shared $< -o $@ -ldl

# The trainer without the CUDA runtime, which allocates before main() begins and does not look whether
# it got anything; that is not ours to mend.
$(BUILD)/faults/devices.o: run/devices.c $(BUILD)/flags
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS) $(OUR_CFLAGS) -c $< -o $@

$(BUILD)/faults/train: $(BUILD)/train.o $(BUILD)/faults/devices.o \
  $(filter-out $(BUILD)/run/devices.o $(CUDA_OBJECTS),$(OBJECTS))
	@$(CC) $(CFLAGS) $(OUR_CFLAGS) $^ -o $@ $(LIBRARIES)

faults: $(BUILD)/tests/faults $(BUILD)/tests/faults_preload.so $(BUILD)/faults/train $(SHAPES)
	@$< $(BUILD)/faults/train $(SHAPES) $(FAULTS)

# Each bug of tests/mutants.txt, planted on purpose, has to fail the checks.
mutants:
	@tests/mutants.sh $(MUTANTS)

# The quick part of the checks in other locales, directories, users; tests/environments.sh [whole].
environments:
	@tests/environments.sh $(ENVIRONMENTS)

# -- Speed ------------------------------------------------------------------------------------------------

PYTHON ?= python3
BENCH_DEVICE ?= cpu

$(BUILD)/bench/bench: $(BUILD)/bench/bench.o $(BUILD)/bench/operations.o $(OBJECTS)
	$(LINK)

bench: export OMP_WAIT_POLICY := passive
# Memory that is freed stays with the process: PyTorch asks for the same sizes at each step, and gains up
# to a seventh by it on a CPU. Ours asks once.
bench: export MALLOC_MMAP_MAX_ := 0
bench: export MALLOC_TRIM_THRESHOLD_ := 8589934592
bench: export MALLOC_TOP_PAD_ := 268435456
# Pages of 2 MB, for which our CPU devices ask (reference/device.c): PyTorch does only with this.
bench: export THP_MEM_ALLOC_ENABLE := 1
bench: $(BUILD)/bench/bench
	@python=$(PYTHON); $(PYTHON) -c 'import torch' 2>/dev/null || { python=; \
	  echo 'no PyTorch to compare with: pip install torch, or PYTHON=.. where it is installed'; }; \
	$(BUILD)/bench/bench $(BENCH_DEVICE) "$$python" $(BUILD)/bench/bench.json

# -- The course -------------------------------------------------------------------------------------------

-include course/course.mk # copies of the sources that only check may be without it

# -- Fuzzing ----------------------------------------------------------------------------------------------

FUZZ_SECONDS ?= 60
FUZZ_FLAGS := -std=c11 -g -O1 -I. -Wall -Wextra -Werror -fsanitize=fuzzer,address,undefined \
  -fno-sanitize-recover=all

# clang whatever $(CC) is: libFuzzer is its own.
$(BUILD)/fuzz/fuzz: tests/fuzz.c cifar.c $(addprefix run/,$(addsuffix .c,checkpoint devices files \
  option_values options progress random safetensors)) $(wildcard *.h run/*.h)
	@mkdir -p $(@D)
	clang $(FUZZ_FLAGS) $(filter %.c,$^) -o $@ -lm

# Sound inputs of each kind to start from; what the fuzzer finds interesting joins them in $(BUILD)/fuzz.
fuzz: $(BUILD)/fuzz/fuzz
	@mkdir -p $(BUILD)/fuzz/corpus
	@(printf c; head -c 6146 /dev/zero) >$(BUILD)/fuzz/corpus/cifar
	$(BUILD)/fuzz/fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 -print_final_stats=1 \
	  -dict=tests/fuzz.dict -artifact_prefix=$(BUILD)/fuzz/ $(BUILD)/fuzz/corpus tests/corpus

# -- The rest ---------------------------------------------------------------------------------------------

format:
	clang-format -i $$(git ls-files '*.c' '*.h' '*.cu' '*.cpp')

# build/bugs and build/exercises hold a student's work: which were found, and the trees to mend.
clean:
	rm -rf train shapes tools/plot
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name bugs ! -name exercises -exec rm -rf {} +
	@[ ! -e build/bugs ] || echo "build/bugs, your work on the bugs, stays; rm -rf build removes it"

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
