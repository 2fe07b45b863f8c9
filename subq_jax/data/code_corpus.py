"""A TFDS dataset of source code or text from a folder: documents split by package and deduplicated by content.

Works without TensorFlow: stored as array_record, read with `as_data_source`.
"""

import os
import shutil
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from subq_jax.files import exclusive
from subq_jax.source_folder import SPLITS, Scan, read_document, scan


class CodeCorpus(tfds.core.GeneratorBasedBuilder):
    """Documents (text, path, package) of a folder; see `subq_jax.source_folder.scan` for which files count.

    The default source is the standard library of the running interpreter without tests and installed packages. The
    config is named by the fingerprint of the folder's content, so a changed folder is another dataset. The counts of
    skipped files stand in `info.metadata`. Prefer `prepare`, which lets several processes build at once.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, scanned: Scan | None = None, data_dir: str | None = None, **kwargs):
        self._scanned = scanned or scan()
        config = tfds.core.BuilderConfig(name=self._scanned.fingerprint, description="documents of one source folder")
        super().__init__(data_dir=data_dir, config=config, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Source code or text of a folder, split by package, deduplicated by content.",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("text", "path", "package")}),
            metadata=tfds.core.MetadataDict(
                binary_files_skipped=self._scanned.num_binary,
                empty_files_skipped=self._scanned.num_empty,
                duplicate_files_skipped=self._scanned.num_duplicates,
            ),
        )

    def _split_generators(self, dl_manager):
        present = {document.split for document in self._scanned.documents}
        return {split: self._generate_examples(split) for split in SPLITS if split in present}

    def _generate_examples(self, split):
        for document in self._scanned.documents:
            if document.split == split:
                text = read_document(self._scanned.source, document)
                yield document.path, {"text": text, "path": document.path, "package": document.package}


def prepare(source: str = "", data_dir: str = "", suffix: str = "") -> Path:
    """Builds the dataset of a folder unless it is there already; safe to call from several processes at once.

    With a `suffix` only files whose names end in it count. Returns the folder of the prepared dataset, for
    `tfds.builder_from_directory`.

    TFDS writes into a temporary folder and renames it when complete, so an interrupted build is never taken for a
    dataset; what it left behind is removed by the next build.

    Raises:
      ValueError: when the source is unusable (see `scan`), or holds the dataset itself.
    """
    scanned = scan(source, suffix)
    root = data_folder(data_dir)
    if root.is_relative_to(scanned.source):
        raise ValueError(f"data.data_dir must lie outside the source folder {str(scanned.source)!r}, got {str(root)!r}")
    folder = root / CodeCorpus.name / scanned.fingerprint / str(CodeCorpus.VERSION)
    if folder.exists():
        return folder
    with exclusive(folder.parent):
        if not folder.exists():
            for leftover in folder.parent.glob("incomplete.*"):
                shutil.rmtree(leftover)
            logging.info(
                "building %s from %s: %d documents; skipped %d binary, %d empty and %d duplicate files",
                folder,
                scanned.source,
                len(scanned.documents),
                scanned.num_binary,
                scanned.num_empty,
                scanned.num_duplicates,
            )
            tfds.disable_progress_bar()
            CodeCorpus(scanned=scanned, data_dir=str(root)).download_and_prepare()
    return folder


def data_folder(data_dir: str) -> Path:
    """Where datasets go: `data_dir`, or below the user's cache folder where it is empty."""
    if data_dir:
        return Path(data_dir).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subq_jax" / "tfds"
