# `make sweep` and `make test` do all the set-up on a fresh clone: the first call makes .venv and installs into it.
VENV := .venv
PY := $(VENV)/bin/python
WORKDIR ?= runs/readme
QUESTIONS ?= runs/questions

# glibc returns large buffers to the system at every free, and XLA allocates them anew at every step: keep them instead
# (measured on 2 cores: an attention step takes 0.5 to 0.8 of the time).
export MALLOC_MMAP_THRESHOLD_ := 4000000000
export MALLOC_TRIM_THRESHOLD_ := 4000000000
export MALLOC_ARENA_MAX := 1

# Where there is no TPU libtpu only compiles for one, and must not ask the cloud for it.
ifeq ($(wildcard /dev/accel* /dev/vfio/*),)
export TPU_SKIP_MDS_QUERY := 1
endif

.PHONY: sweep evaluation test test-full lint clean

sweep: $(VENV)/.installed  ## the main job: train and compare the mechanisms on recall and code, write a report
	$(PY) -m experiments.sweep --config=configs/readme_sweep.py --workdir=$(WORKDIR) --parallel_cells=2

evaluation: $(VENV)/.installed  ## train two arms to find a needle in 256 tokens, ask them in contexts of up to 8,192
	$(PY) -m experiments.train --config=configs/questions.py --workdir=$(QUESTIONS)/selective
	$(PY) -m experiments.train --config=configs/questions.py --workdir=$(QUESTIONS)/sliding_window \
		--config.model.mechanism=sliding_window
	$(PY) -m experiments.evaluate --runs=$(QUESTIONS)/selective,$(QUESTIONS)/sliding_window --against=selective \
		--tasks=niah_single_1 --lengths=512,1024,2048,4096,8192 --haystacks=20 --no_context --workarounds=retrieval \
		--chunk_sizes=128,256 --workdir=$(QUESTIONS)/evaluation

test: $(VENV)/.installed  ## the test suite, lint first
	$(PY) -m ruff check .
	$(PY) -m pytest -n 2 -m "not slow and not gpu and not tpu"

test-full: $(VENV)/.installed  ## every test, the long matrix included
	$(PY) -m pytest -n 2 -m "not gpu and not tpu"

lint: $(VENV)/.installed
	$(PY) -m ruff check .

$(VENV)/.installed: setup.py constraints.txt scripts/make_venv.sh
	bash scripts/make_venv.sh $(VENV)
	touch $@

clean:
	rm -rf $(VENV) runs
