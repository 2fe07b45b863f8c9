"""Package metadata of subq_jax; the build system and the tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

VERSIONS = ">=0.11.2,<0.13"  # of jax and its plugins
JAX, GPU, TPU = f"jax{VERSIONS}", f"jax[cuda13]{VERSIONS}", f"jax[tpu]{VERSIONS}"
# libtpu compiles for TPUs on any such machine, so that tests of the kernels need none.
LIBTPU = f'{TPU}; sys_platform == "linux" and platform_machine == "x86_64"'
# transformers brings the tokenizers that its RULER tasks measure prompts with; PyTorch is not needed.
HARNESS = ["lm_eval[ruler]>=0.4.13", "transformers>=5"]
EVALUATE = ["bm25s>=0.3.16"]  # retrieval, for the work-arounds that long context is compared with

setup(
    name="subq_jax",
    version="0.1.0",
    description="Sub-quadratic selective attention for JAX: mechanisms, kernels, models and experiments.",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.12",
    package_dir={"": "."},  # an editable install is then found from the clone's parent folder, too
    packages=find_packages(include=["subq_jax", "subq_jax.*"]),
    install_requires=[
        JAX,
        "flax>=0.12.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # imported by tensorflow-datasets, which does not declare it for Python >= 3.12
        "array_record>=0.8",
        "absl-py>=2.5",
        "ml_collections>=1.1",
        "grain>=0.2.18",
        "jaxtyping>=0.3",
        "tensorboardX>=2.6",
        "matplotlib>=3.10",
        "rich>=14",
        "tokenizers>=0.22",
    ],
    extras_require={
        "gpu": [GPU],
        "tpu": [TPU],
        "evaluate": EVALUATE,
        "harness": HARNESS,
        "dev": [*EVALUATE, LIBTPU, "pytest>=9", "pytest-xdist>=3.8", "hypothesis>=6.150", "ruff>=0.17"],
    },
)
