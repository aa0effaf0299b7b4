# The course's own targets; the Makefile includes this file.

.PHONY: experiment experiment-table course-check

# Neither, mixup, smoothing, both: RECIPE=minutes, evening or published; SEEDS=3; JOBS= runs at a time
# (1 where a GPU does the work); RESULTS=DIR. tools/experiment.sh says more.
export RECIPE SEEDS JOBS RESULTS
experiment: export ARGS := $(ARGS)
experiment: $(TRAIN) $(SHAPES)
	@$(FIND_DATA) && TRAIN=$(TRAIN) DATA="$$data" tools/experiment.sh all

experiment-table:
	@tools/experiment.sh table

# What CI runs of the course, besides `make check`.
course-check: $(TRAIN) $(SHAPES)
	@tests/run.sh "tests/experiment_test.sh $(TRAIN) $(SHAPES)"
