"""A cache -> the README.md of a data set on the Hugging Face Hub: what it holds and how it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache_tools.write.space import format_bytes

if TYPE_CHECKING:
    from cache_tools.format.store import Store

_CARD = """---
tags:
- super-resolution
- championship-sr
---

# Outputs of {experts}

{items} items of {images} images ({size}), made by `python -m cache_tools extract` of Championship SR: for every image
the LR input, the 4x images of each expert{features}{truth}.

| expert | architecture | features | precision | sha256 of the weights |
|---|---|---|---|---|
{table}

- profile `{profile}`, compression `{compression}`, regions per image: {regions}, all eight turns: {dihedral}
- LR images: {degradation}
- fingerprint of the recipe: `{fingerprint}`

```
python -m cache_tools pull {address} cache/
python train.py --config configs/fusion_x4.yaml --cache {address}
```

The images keep the licence of the set that they come from, which this card cannot know: add `license:` above.
"""


def dataset_card(store: Store, address: str) -> str:
    """From the manifest and the index alone."""
    recipe, entries = store.manifest.recipe, store.entries()
    rows = [
        f"| {one.name} | {one.architecture} | {one.channels} | {one.precision} | `{one.weights_sha256}` |"
        for one in recipe.experts
    ]
    return _CARD.format(
        experts=", ".join(one.name for one in recipe.experts),
        items=len(entries),
        images=len({entry.source for entry in entries}),
        size=format_bytes(sum(entry.bytes for entry in entries)),
        features=" and its features" if any(one.channels for one in recipe.experts) else "",
        truth=", and the HR image" if entries and store.header(entries[0].id).has_hr else "",
        table="\n".join(rows),
        profile=recipe.profile,
        compression=recipe.compression,
        regions=recipe.regions or "whole images",
        dihedral="yes" if recipe.dihedral else "no",
        degradation=recipe.degradation,
        fingerprint=store.manifest.fingerprint,
        address=address,
    )
