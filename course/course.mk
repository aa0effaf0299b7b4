# The course's own targets; the Makefile includes this file.

.PHONY: experiment experiment-table pictures ladder exercise bug course-check

# Neither, mixup, smoothing, both: RECIPE=minutes, evening, night or published; SEEDS=3; JOBS= runs at a time
# (1 where a GPU does the work); RESULTS=DIR. tools/experiment.sh says more.
export RECIPE SEEDS JOBS RESULTS WEIGHTS PICTURES
experiment: export ARGS := $(ARGS)
experiment: $(TRAIN) $(SHAPES)
	@$(FIND_DATA) && TRAIN=$(TRAIN) DATA="$$data" tools/experiment.sh all

experiment-table:
	@tools/experiment.sh table

# -- Pictures -----------------------------------------------------------------------------------------

DRAW := $(BUILD)/pictures

$(DRAW): $(patsubst %.c,$(BUILD)/%.o,tools/pictures.c tools/png.c tools/svg.c $(wildcard tools/draw_*.c)) $(OBJECTS)
	$(LINK)

# Learning curves from anyone's --log: tools/plot run.csv -o run.svg
$(BUILD)/plot: $(BUILD)/tools/plot.o $(BUILD)/tools/svg.o
	$(LINK)

# Into course/pictures/, from the stand-in set; DATA=DIR: of another, into build/pictures/.
pictures: $(DRAW) $(BUILD)/plot $(TRAIN) $(SHAPES) $(BUILD)/bench/cost
	@cp -f $(BUILD)/plot tools/plot
	@DATA="$(DATA)" SHEET="$(SHEET)" BUILD=$(BUILD) TRAIN=$(TRAIN) SHAPES=$(SHAPES) tools/pictures.sh

# -- The ladder ---------------------------------------------------------------------------------------

RUNGS := $(wildcard course/ladder/*.cu)
LADDER := $(BUILD)/watched/ladder

$(LADDER): $(BUILD)/course/ladder/ladder.o $(LIBRARY:%.c=$(BUILD)/%.o) $(WATCHED) \
  $(RUNGS:%.cu=$(BUILD)/watched/%.o) $(CUDA_OBJECTS) $(if $(CUDA_OBJECTS),$(RUNGS:%.cu=$(BUILD)/cuda/%.o))
	$(LINK)

ifneq ($(CUDA_OBJECTS),)
$(BUILD)/course/ladder/ladder.o $(BUILD)/course/exercises/exercises.o: private OUR_CFLAGS += -DHAVE_CUDA
endif

# Six rungs from a plain kernel to conv.cu's: held against the reference, and what each costs.
ladder: $(LADDER)
	@$(LADDER)

# -- Fill in ------------------------------------------------------------------------------------------

# Everything but a student's file: the checker, our solutions, the program's kernels.
IN_EXERCISES := course/exercises/table.cu $(wildcard course/exercises/solutions/*.cu)
EXERCISES := $(BUILD)/watched/exercises
EXERCISE_OBJECTS := $(BUILD)/course/exercises/exercises.o $(LIBRARY:%.c=$(BUILD)/%.o) $(WATCHED) \
  $(IN_EXERCISES:%.cu=$(BUILD)/watched/%.o) $(CUDA_OBJECTS) \
  $(if $(CUDA_OBJECTS),$(IN_EXERCISES:%.cu=$(BUILD)/cuda/%.o))

$(EXERCISES): $(EXERCISE_OBJECTS)
	$(LINK)

# For tools/exercise.sh, which compiles a student's file and links it with these. Warnings are shown,
# and are no errors: half-written code has some.
exercise course-check: export CHECKER := $(EXERCISES)
exercise course-check: export OBJECTS := $(EXERCISE_OBJECTS)
exercise course-check: export COMPILE := g++ $(WATCH_FLAGS) $(filter-out -MMD -MP -Werror,$(OUR_CXXFLAGS)) \
  -Wno-unused-parameter -x c++ -c
exercise course-check: export COMPILE_CUDA := $(if $(NVCC),$(NVCC) -std=c++17 -O3 -arch=$(or $(ARCH),sm_80) -I. -c)
exercise course-check: export LINK_WITH := $(CC) $(CFLAGS) $(OUR_CFLAGS)
exercise course-check: export LINK_THEN := $(CUDA_LIBRARIES) $(LIBRARIES)
exercise course-check: export HAVE_GPU := $(DETECTED)

# Lists the ten; N=1 .. 10 checks course/exercises/N_..cu, or another file that FILE= names.
exercise: $(EXERCISES)
	@tools/exercise.sh $(N) $(if $(and $(N),$(FILE)),"$(FILE)")

# -- Find the bug -------------------------------------------------------------------------------------

# N=1 .. 12: plants that bug in a copy of the sources and shows who noticed; SOLVE=1 says where it is.
bug:
	@tools/bug.sh $(N) $(if $(N),$(if $(SOLVE),solve))

# -- Checks -------------------------------------------------------------------------------------------

# What CI runs of the course, besides `make check`.
course-check: $(TRAIN) $(SHAPES) $(DRAW) $(BUILD)/plot $(LADDER) $(EXERCISES) $(BUILD)/watched/simt_test
	@tests/run.sh $(LADDER) "tests/experiment_test.sh $(TRAIN) $(SHAPES)" \
	  "tests/pictures_test.sh $(DRAW) $(BUILD)/plot $(SHAPES) $(TRAIN)" \
	  "tests/chapters_test.sh $(LADDER) $(BUILD)/watched/simt_test" tests/bugs_test.sh tests/exercises_test.sh
