# Makefile: one command for each thing that is done with this repository. Everything goes into .venv and build/; nothing outside changes.
#
#   make demo         build, install with the demo's weights and photos, classify three photos, time ResNet-50 layer by layer
#   make test         build, install with the reference (torch), run the whole suite          (ARGS="-k conv -x" goes to pytest)
#   make lint         ruff, clang-format, mypy          make format    let ruff and clang-format rewrite the files
#   make wheel        dist/*.whl                        make wheel-check    ... tried where there is no compiler and nothing but its needs
#   make asan         the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make native-test  every kernel without Python, on every ISA of this machine (ARGS="problems seed index"; SANITIZE=ON)
#   make neon         cross-compile for aarch64, look at the machine code      make neon-test    ... and run it in an emulator
#   make cuda         the CUDA kernels for all devices, into build/cuda, and a check of what the compiler says about them (needs nvcc, no GPU)
#   make gpu-test     on a machine with a GPU: build for it alone, run its tests (no network: the packages of PYTHON are used; ARGS="-k conv"),
#                     then a few under compute-sanitizer; where time is short, one after another: gpu-build, gpu-tests, gpu-sanitizer
#   make gpu-bench    the same build, timed beside PyTorch: the numbers asked for (ARGS="--only half first --seconds 500 --json gpu.json"), or
#                     networks (ARGS="resnet50 --batch 1 32")
#   make stubs        write python/convkern/_core.pyi anew       make check-build    it is current; the objects keep to their ISA
#   make dev          an editable install with all tools and the pre-commit hooks
#   make clean        remove build/, dist/ and .venv
#
# PYTHON=python3.12 makes .venv with another Python; PIP_ARGS goes to every pip install (an index, --no-index ...).

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
SOURCES := CMakeLists.txt pyproject.toml constraints.txt README.md \
           $(shell find csrc python -type f ! -name '*.so' ! -name '*.pyc' ! -name '.*')
CXX_FILES = $(shell find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
WHEEL_LIMIT := 5000000
CUDA_WHEEL_LIMIT := 40000000
NATIVE := $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCONVKERN_NATIVE=ON

SANITIZE ?= OFF
CROSS ?= aarch64-linux-gnu-
SYSROOT ?= /usr/aarch64-linux-gnu

.PHONY: demo test lint format wheel wheel-check asan native-test neon neon-test cuda gpu-build gpu-test gpu-tests gpu-sanitizer gpu-bench stubs \
        check-build dev clean
.DELETE_ON_ERROR:

demo: .venv/demo.stamp
	$(BIN)/convkern demo
	$(BIN)/convkern bench resnet50

test: .venv/test.stamp
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/tools.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: .venv/tools.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: .venv/tools.stamp
	rm -rf dist
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps $(PIP_ARGS) -w dist .
	$(BIN)/auditwheel show dist/*.whl

# The venv has numpy, safetensors and the wheel; PATH has the venv alone, so that no compiler can be found.
wheel-check: wheel
	test $$(stat -c %s dist/*.whl) -le $(WHEEL_LIMIT)
	$(PYTHON) -m venv --clear build/bare
	build/bare/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) --only-binary :all: dist/*.whl
	build/bare/bin/python -m pip list --disable-pip-version-check
	cd build/bare && env -i PATH="$$PWD/bin" bin/convkern info
	cd build/bare && env -i PATH="$$PWD/bin" bin/convkern verify
	cd build/bare && env -i PATH="$$PWD/bin" CONVKERN_ISA=base bin/convkern summary vgg16 --input 224

# Everything that reaches C++ with odd shapes. Python itself leaks on purpose, and torch's own threads are not instrumented.
asan: .venv/test.stamp
	rm -rf build/asan
	CONVKERN_SANITIZE=ON $(INSTALL) --config-settings=build-dir=build/asan-objects --config-settings=install.strip=false --no-deps --target build/asan .
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/asan \
	$(BIN)/python -m pytest -p no:cacheprovider $(or $(ARGS),tests/test_conv_kernels.py tests/test_kernels_other.py tests/test_warp.py)

native-test: .venv/cmake.stamp
	$(NATIVE) -B build/native-$(SANITIZE) -DCONVKERN_SANITIZE=$(SANITIZE)
	$(BIN)/cmake --build build/native-$(SANITIZE)
	build/native-$(SANITIZE)/tests/native/native_kernels $(ARGS)

neon: .venv/cmake.stamp
	@command -v $(CROSS)g++ >/dev/null || { echo "$(CROSS)g++ was not found: apt install g++-aarch64-linux-gnu, or name one: make neon CROSS=..."; exit 1; }
	$(NATIVE) -B build/neon -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CROSS)g++
	$(BIN)/cmake --build build/neon
	$(BIN)/python tools/check_neon.py build/neon $(CROSS)objdump

neon-test: neon
	@command -v qemu-aarch64 >/dev/null || { echo "qemu-aarch64 was not found: apt install qemu-user"; exit 1; }
	QEMU_LD_PREFIX=$(SYSROOT) qemu-aarch64 build/neon/tests/native/native_kernels $(ARGS)

cuda: .venv/cuda.stamp
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DCONVKERN_CUDA=ON
	$(BIN)/cmake --build build/cuda --target _cuda
	$(BIN)/python tools/check_cuda.py build/cuda --most $$(($(CUDA_WHEEL_LIMIT) - $(WHEEL_LIMIT)))

# Nothing is fetched: PYTHON has torch, numpy, safetensors, pytest, scikit-build-core, pybind11, cmake and ninja (the build takes all processors).
# Its other packages are nobody's concern: no plugin of pytest but xdist, which spreads the tests over processes, and warnings stay warnings.
GPU_ENV = PATH="$$PATH:/usr/local/cuda/bin"
GPU_PYTEST = $(GPU_ENV) CONVKERN_REQUIRE_GPU=1 PYTHONPATH=build/gpu PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTHON) -m pytest -W default \
  -p no:cacheprovider tests/gpu
GPU_SPREAD = $$($(PYTHON) -c "import xdist; print('-p xdist -n 6')" 2>/dev/null)
TOOLS ?= memcheck racecheck

build/gpu/convkern: $(SOURCES)
	$(GPU_ENV) CONVKERN_CUDA=ON CONVKERN_CUDA_ARCHS=native $(PYTHON) -m pip install --disable-pip-version-check --no-build-isolation --no-deps \
	  --no-index --upgrade --target build/gpu .
	@touch $@

gpu-build: build/gpu/convkern

gpu-tests: build/gpu/convkern
	$(GPU_PYTEST) -m "not alone" $(GPU_SPREAD) $(ARGS) || [ $$? = 5 ]
	$(GPU_PYTEST) -m alone $(ARGS) || [ $$? = 5 ]

gpu-sanitizer: build/gpu/convkern
	@export $(GPU_ENV); command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer was not found: no check for memory errors and races"; exit 0; }; \
	for tool in $(TOOLS); do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --target-processes all --tool $$tool --error-exitcode 9 \
	    env $(GPU_PYTEST) -m sanitizer -x -q $(ARGS) || exit 1; \
	done

gpu-test: gpu-tests
	@$(MAKE) gpu-sanitizer

gpu-bench: build/gpu/convkern
	PYTHONPATH=build/gpu $(PYTHON) -m convkern.bench.gpu $(ARGS)

stubs: .venv/test.stamp .venv/tools.stamp
	$(BIN)/python tools/stubs.py --write

check-build: .venv/test.stamp .venv/tools.stamp
	$(BIN)/python tools/stubs.py
	$(BIN)/python tools/check_symbols.py build

dev: .venv/tools.stamp
	$(INSTALL) -e '.[test,dev]'
	$(BIN)/pre-commit install
	touch .venv/test.stamp .venv/demo.stamp

clean:
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache

# What stands in .venv. A stamp is younger than everything that the installed package is made of.
.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.10 or later, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) tools/check_machine.py
	$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python $(SOURCES)
	$(INSTALL) '.[demo]'
	@touch $@

.venv/test.stamp: .venv/bin/python $(SOURCES)
	$(INSTALL) '.[test]'
	@touch $@ .venv/demo.stamp

.venv/cmake.stamp: .venv/bin/python
	$(INSTALL) cmake ninja
	@touch $@

.venv/cuda.stamp: .venv/bin/python
	$(INSTALL) cmake ninja pybind11
	@touch $@

.venv/tools.stamp: .venv/bin/python constraints.txt
	$(INSTALL) ruff clang-format mypy auditwheel pybind11-stubgen pre-commit numpy
	@touch $@
