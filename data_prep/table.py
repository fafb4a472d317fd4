"""All datasets that `mmdora prep` knows. A new one is imported here and added to the list."""

from __future__ import annotations

from collections.abc import Mapping

from mmdora.data_prep import (
    arc,
    boolq,
    coco_captions,
    commonsense,
    digits,
    easy_vqa,
    folder,
    gqa,
    hellaswag,
    how2qa,
    llava,
    messages,
    mmbench,
    nlvr2,
    okvqa,
    openbookqa,
    piqa,
    pope,
    refcoco,
    scenes,
    scienceqa,
    sharegpt,
    siqa,
    textvqa,
    tvc,
    tvqa,
    vizwiz,
    vqav2,
    winogrande,
    yc2c,
)
from mmdora.prepare.dataset import Dataset

_DATASETS = (
    arc.DATASET,
    boolq.DATASET,
    coco_captions.DATASET,
    commonsense.DATASET,
    digits.DATASET,
    easy_vqa.DATASET,
    folder.DATASET,
    gqa.DATASET,
    hellaswag.DATASET,
    how2qa.DATASET,
    llava.DATASET,
    messages.DATASET,
    mmbench.DATASET,
    nlvr2.DATASET,
    okvqa.DATASET,
    openbookqa.DATASET,
    piqa.DATASET,
    pope.DATASET,
    refcoco.DATASET,
    scenes.DATASET,
    scienceqa.DATASET,
    sharegpt.DATASET,
    siqa.DATASET,
    textvqa.DATASET,
    tvc.DATASET,
    tvqa.DATASET,
    vizwiz.DATASET,
    vqav2.DATASET,
    winogrande.DATASET,
    yc2c.DATASET,
)
DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _DATASETS}
"""Name -> dataset, in the order of `mmdora prep --list`."""
