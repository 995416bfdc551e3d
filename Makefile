# make demo   set up, then the main job on sample photographs; ends by saying where to look
# make test   set up, then the tests
# make lint   set up, then ruff and pyright
# make wheel-test   set up, build the wheel, install it away from the checkout, run it
# make attack  set up, then 10,000 damaged and hostile inputs through every reader; docs/results/attack.md
# make cluster-test   set up, install Ray and an S3 server, run the tests of several machines and object storage
# make try    set up, then docs/try: the network `fast` in a page of this machine's browser; needs npm
# make clean  remove what the demo made; make distclean also the environment
#
# TORCH=cpu TORCH_INDEX=URL   on Linux x86_64: torch without CUDA. The address is the one that PyTorch's own "Get Started"
#                             page gives for pip and CPU; elsewhere the usual packages come without CUDA anyway

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
TORCH  ?= default
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY  := $(VENV)/.ready

ifeq ($(TORCH),cpu)
SIZE   := 2.5 GB
else
SIZE   := 6 GB
endif

.PHONY: demo test lint wheel-test attack cluster-test try clean distclean

$(READY): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "refused: no python3 on the PATH; install Python 3.11"; exit 2; }
ifeq ($(TORCH),cpu)
	@test -n "$(TORCH_INDEX)" || { \
	  echo "refused: TORCH=cpu: no package index is given; add TORCH_INDEX=URL, see the top of the Makefile"; exit 2; }
endif
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV): this takes a few minutes and about $(SIZE) the first time"
ifeq ($(TORCH),cpu)
	@$(PIP) --index-url "$(TORCH_INDEX)" torch torchvision
	@$(BIN)/python -c "import torch, torchvision; assert torch.version.cuda is None, 'this index gave a build for CUDA'"
endif
	@$(PIP) -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python -m imaging samples demo/HR
	$(BIN)/python -m imaging downscale demo/HR demo/LR
	$(BIN)/python -m cache_tools extract --experts edsr-s,msg,freqnet,ssm --hr demo/HR --lr demo/LR --out demo/cache
	$(BIN)/python -m cache_tools info demo/cache
	$(BIN)/python train.py --config configs/demo.yaml --cache demo/cache --resume auto
	$(BIN)/python infer.py -i demo/LR -o demo/SR --report --hr demo/HR
	$(BIN)/python -m imaging compare --lr demo/LR --sr demo/SR --hr demo/HR --out demo/picture.png
	@if $(BIN)/python -c "import diffusers" 2>/dev/null; then \
	  $(BIN)/python infer.py -i demo/LR -o demo/refined --refine native --report --hr demo/HR && \
	  echo "demo/refined/report.html has a slider from the fused to the refined image"; fi
	@echo "look at demo/picture.png: bicubic, super-resolved, truth side by side;"
	@echo "and open demo/SR/report.html in a browser; the whole images are in demo/SR"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

cluster-test: $(READY)
	@$(PIP) -e ".[cluster-dev]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/cluster

try: $(READY)
	@command -v npm >/dev/null || { echo "refused: no npm on the PATH; install Node.js"; exit 2; }
	cd docs/try && npm install --no-audit --no-fund --no-package-lock
	$(BIN)/python -m experts export pretrained/fast.safetensors --to onnx docs/try/fast.onnx
	$(BIN)/python docs/try/serve.py

wheel-test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/package/test_wheel.py

attack: $(READY)
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m tests.attack --out docs/results/attack.md

clean:
	rm -rf demo

distclean: clean
	rm -rf $(VENV)
