# make demo   set up, then the main job on sample photographs; ends by saying where to look
# make test   set up, then the tests
# make lint   set up, then ruff and pyright
# make clean  remove what the demo made; make distclean also the environment

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint clean distclean

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "refused: no python3 on the PATH; install Python 3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV): this takes a few minutes and about 6 GB the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python -m imaging samples demo/HR
	$(BIN)/python -m imaging downscale demo/HR demo/LR
	$(BIN)/python -m cache_tools extract --experts edsr-s,msg,freqnet,ssm --hr demo/HR --lr demo/LR --out demo/cache
	$(BIN)/python -m cache_tools info demo/cache
	$(BIN)/python train.py --config configs/demo.yaml --cache demo/cache --resume auto
	$(BIN)/python infer.py -i demo/LR -o demo/SR --report --hr demo/HR
	$(BIN)/python -m imaging compare --lr demo/LR --sr demo/SR --hr demo/HR --out demo/picture.png
	@echo "look at demo/picture.png: bicubic, super-resolved, truth side by side;"
	@echo "and open demo/SR/report.html in a browser; the whole images are in demo/SR"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf demo

distclean: clean
	rm -rf $(VENV)
