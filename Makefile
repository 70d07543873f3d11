# Front door for developers. Every target sets up what it needs, once: .venv, .host/ComfyUI-<version>.
#   COMFYUI_PATH=/my/ComfyUI   use a ComfyUI you have        COMFYUI_VERSION=0.16.3   choose another one
#   ARGS="..."                 arguments for the tool, e.g.  make test ARGS="tests/fusion -k policies"

PYTHON ?= python3
RUN := .venv/bin
ARGS ?=

# ComfyUI is many small operators: idle OpenMP threads that spin cost more than they save.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-matrix soak contract fuzz lint format house bench-speed bench-quality bench-dials bench-router bench-distilled bench-stress bench-shares bench-guidance bench-world family-grid routing-grid policy-sheet screenshots templates thumbnails clean baked-files file-grid test-frontends sampling-grid

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## virtual environment and ComfyUI
	@$(PYTHON) tools/setup_env.py

demo: setup ## this subject in that style, by the real ComfyUI, into output/
	@$(RUN)/python -m benchmarks.emoji.demo $(ARGS)

# A part of each of host's rooms; the one of guiding runs through a real server.
SMOKE := tests/host/loras/test_lora_files.py tests/host/fusing/test_fusion_equality.py \
	tests/host/fusing/test_fusion_invariance.py::test_same_inputs_same_picture_bit_for_bit \
	tests/host/fusing/test_fusion_invariance.py::test_an_ended_run_leaves_nothing_and_the_next_is_good \
	tests/host/maps/test_live_map.py::test_columns_are_the_record_s \
	tests/host/vision/test_gradients.py::test_core_encoders_agree_with_core_and_have_gradients \
	tests/host/baking/test_baked_files.py::test_one_lora_needs_no_latent_and_keeps_its_rank \
	tests/host/comparing/test_compare.py::test_values_are_those_of_their_inputs \
	tests/host/guiding/test_server.py::test_off_is_ksampler_bit_for_bit \
	tests/host/guiding/test_server.py::test_guidance_raises_similarity_under_inference_mode

check: export OMP_NUM_THREADS ?= 1
check: lint ## before every commit, two minutes: lint, all of fusion and guidance, a part of each room of host
	@$(RUN)/pytest -n auto --dist loadfile tests/test_architecture.py tests/tools/test_house_table.py \
		tests/fusion tests/guidance $(SMOKE) $(ARGS)

test: export OMP_NUM_THREADS ?= 1
test: setup ## all tests, against the real ComfyUI; one process a core
	@$(RUN)/pytest -n auto --dist loadfile $(ARGS)

test-matrix: setup ## every supported ComfyUI x modes of memory, into docs/compatibility.md; ARGS=--full: the host tests too
	@$(RUN)/python tools/matrix.py $(ARGS)

test-frontends: setup ## our extensions on other versions of the page, into docs/compatibility.md; ARGS="--version 1.58.1"
	@$(RUN)/python tools/frontends.py $(ARGS)

soak: setup ## random prompts and injected failures on two servers, a clean reference after each; ARGS="--prompts 60"
	@$(RUN)/python tools/soak.py $(ARGS)

contract: setup ## what was appended to nodes, into tests/fixtures/contract.json
	@$(RUN)/python tools/contract.py $(ARGS)

lint: setup ## style, types, import arrows
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@cd .build && ../$(RUN)/mypy --config-file ../pyproject.toml # elsewhere than here: `nodes` is ComfyUI's
	@$(RUN)/lint-imports

format: setup ## rewrite the files in the agreed format
	@$(RUN)/ruff check --fix .
	@$(RUN)/ruff format .

house: ## the table of rooms and files in ARCHITECTURE.md, made of the files' docstrings
	@$(PYTHON) tools/house_table.py $(ARGS)

fuzz: export OMP_NUM_THREADS ?= 1
fuzz: setup ## parsers of ours on 100,000 inputs each that were made worse; ARGS="--cases N --seed N loras plans"
	@$(RUN)/python -m tests.fuzz $(ARGS)

bench-speed: setup ## cost of fusing and guiding, relative to no LoRA
	@$(RUN)/python -m benchmarks.speed $(ARGS)

bench-quality: setup ## every policy judged in the small world, into docs/benchmarks/quality.md; ARGS=--quick: minutes
	@$(RUN)/python -m benchmarks.emoji.bench_quality $(ARGS)

bench-dials: setup ## each strength turned from 0 to 2 in the small world, into docs/benchmarks/dials.md
	@$(RUN)/python -m benchmarks.emoji.bench_dials $(ARGS)

bench-router: setup ## what deciding by layer adds to a fixed schedule, with files of every kind, into docs/benchmarks/router.md
	@$(RUN)/python -m benchmarks.emoji.bench_router $(ARGS)

bench-distilled: setup ## the default at CFG 1, on the guidance-distilled small world, into docs/benchmarks/distilled.md
	@$(RUN)/python -m benchmarks.emoji.bench_distilled $(ARGS)

bench-stress: setup ## the default and stacking with files as people make them, into docs/benchmarks/stress.md; ARGS="--stress FOLDER"
	@$(RUN)/python -m benchmarks.emoji.bench_stress $(ARGS)

bench-shares: setup ## which share the subject has under each policy, into docs/benchmarks/shares.md
	@$(RUN)/python -m benchmarks.emoji.bench_shares $(ARGS)

bench-guidance: setup ## what metric guidance does to the small world's pictures, and its cost; ARGS="--world FOLDER"
	@$(RUN)/python -m benchmarks.emoji.bench_guidance $(ARGS)

bench-world: setup ## the small worlds anew from public packages, hours; ARGS="--out FOLDER", with --quick minutes
	@$(RUN)/python -m benchmarks.emoji.bench_world $(ARGS)

family-grid: setup ## every family of models x every adapter against ComfyUI's merge, into docs/family-grid.md
	@$(RUN)/python -m tests.host.families $(ARGS)

routing-grid: setup ## every family of models x policies: batches, packing, replay, freezing; into docs/routing-grid.md
	@$(RUN)/python -m tests.host.families.routing_page $(ARGS)

baked-files: setup ## what ComfyUI and diffusers use of baked files, by family and dialect of the parents, into docs/baked-files.md
	@$(RUN)/python -m tests.host.baking $(ARGS)

file-grid: setup ## every kind of LoRA file x every oddity against ComfyUI's own loaders, into docs/file-kinds.md
	@$(RUN)/python -m tests.host.file_kinds $(ARGS)

sampling-grid: setup ## every way to sample, patch and start against ComfyUI's merge, into docs/compatibility.md
	@$(RUN)/python -m tests.host.sampling $(ARGS)

policy-sheet: setup ## every policy's picture and routing map in the small world, into output/policies.png
	@$(RUN)/python -m benchmarks.emoji.policy_sheet $(ARGS)

screenshots: setup ## the real page with the example workflow, into output/screenshots/
	@$(RUN)/python tools/screenshots.py $(ARGS)

templates: setup ## the templates anew, from tools/templates.py into example_workflows/
	@$(RUN)/python tools/templates.py $(ARGS)

thumbnails: setup ## pictures of the templates and of the help pages, from the real page
	@$(RUN)/python tools/thumbnails.py $(ARGS)

clean: ## remove everything the other targets made
	rm -rf .venv .host .build output .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
