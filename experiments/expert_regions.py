r"""The neighbours, 3: explanations of robust networks against what an expert would point at.

Secure Diagnostics (Najafi et al., 2025) finds that they overlap more, for fractures that a surgeon has marked. Here the
expert is the mask of the object, on rendered shapes that are small and stand on a texture, or any masks that come with
a file of images.

    python -m experiments.expert_regions                               # textured small shapes, 3 minutes on 2 cores
    python -m experiments.expert_regions --dataset=fractures.npz       # with an array test_masks

Expected: saliency, occlusion, GradCAM and DeepLIFT of robust networks overlap more with the mask than the standard
network's. Beside them stand random maps and the image's edges, which know no network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import evaluation
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of
from experiments.harness.settings.config import ConfigError, TrainingConfig, setting, subsets
from experiments.harness.training import stages
from experiments.harness.training.specs import kinds_of, specs_of
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import data, faithfulness, gradients, networks
from robgrad.data import marks

SECTION = "expert regions"
MEASURES = {"overlap": "overlap", "pointing": "pointing game", "mass": "relevance mass"}
BASELINES = ("random", "edges")
# The attributions that the abstract speaks of.
PUBLISHED = ("gradient", "occlusion", "grad_cam", "deep_lift")
SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(TrainingConfig):
    """Attributions that are compared with the masks."""

    needs_masks: ClassVar[bool] = True

    attributions: tuple[str, ...] = setting(
        "Attributions compared with the masks.",
        PUBLISHED,
        choices=lambda: tuple(gradients.ATTRIBUTIONS),
    )


def methods_of(config: ExpertConfig) -> dict[str, gradients.Attribution]:
    """The attributions and the baselines by name."""
    known = gradients.ATTRIBUTIONS | {"random": gradients.random}
    return {name: known[name] for name in dict.fromkeys((*config.attributions, *BASELINES))}


def measure(run: Run) -> experiment.Arrays:
    """Agreement of each network's and attribution's map with each mask, `[network, attribution, image]`."""
    config, shape = run.config, run.image_shape
    train, test = subsets(config, run.dataset)
    masks = marks.test_masks(run.dataset, config.test_examples)
    # An image in which an expert points at nothing cannot be agreed with.
    pointed = masks.any(axis=(1, 2))
    if not pointed.any():
        raise ConfigError(f"--dataset={run.dataset.name}: expected masks with pixels, got none in the test images used")
    masks, test = masks[pointed], test.take(pointed)
    trained = stages.train_networks(run, specs_of(config), train)
    methods = methods_of(config)

    def of_image(_, variables, example):
        key, pixels, mask = example
        image, own, found = data.scale(pixels), networks.logits_fn(trained.network, variables), []
        for name, attribution in methods.items():
            one = gradients.key_named(key, name)
            values = attribution(one, own, image)
            agreed = faithfulness.agreement(one, values, mask)
            found.append({field: getattr(agreed, field) * 1.0 for field in (*MEASURES, "chance")} | {"map": values})
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    keys = jax.random.split(stages.key_of(config.seed, "expert"), len(masks))
    said = stages.per_example(run, trained, of_image, (keys, test.images, masks))
    maps = said.pop("map")[:, :SHOWN].swapaxes(1, 2)
    arrays = {f"agreed/{name}": values.swapaxes(1, 2) for name, values in said.items()}
    images = np.asarray(data.scale(jnp.asarray(test.images[:SHOWN])), np.float16)
    return arrays | {
        "clean_hits": evaluation.hits(run, trained, test, keys[0]),
        "attributions": np.array(list(methods)),
        "shown/maps": maps.astype(np.float16),
        "shown/test": images,
        "shown/masks": masks[:SHOWN].reshape(-1, *shape[:2], 1),
    }


def tabulate(config: ExpertConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each kind of network and attribution."""
    specs, rows = specs_of(config), []
    for kind, members in kinds_of(specs).items():
        for index, name in enumerate(arrays["attributions"].tolist()):
            row: Row = {"network": kind, "network_seeds": len(members), "attribution": name}
            row["test_accuracy"] = arrays["clean_hits"][members].mean()
            for field in MEASURES:
                row |= claims.bounded(field, arrays[f"agreed/{field}"][members, index])
            row["mask_share"] = arrays["agreed/chance"].mean()
            rows.append(row)
    return {"rows": rows}


def claim(config: ExpertConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """Each attribution overlaps more on the strongest robust networks than on the standard one, and than edges do."""
    del tables
    specs = specs_of(config)
    places, names = kinds_of(specs), arrays["attributions"].tolist()
    strongest = {norm: [one.kind for one in specs if one.norm == norm][-1] for norm in config.norms}
    for field, measure in MEASURES.items():
        values = arrays[f"agreed/{field}"]
        over = claims.Over(config.network_seeds, f"{values.shape[2]} images")
        for name in config.attributions:
            here = values[:, names.index(name)]
            edges = values[:, names.index("edges")]
            published = "more" if name in PUBLISHED else "-"
            for kind in strongest.values():
                group = f"{measure}, {name.replace('_', ' ')}; {kind}"
                text = "explanations of robust networks overlap more with the mask than the standard one's"
                one = claims.Claim(SECTION, text, group, published, over)
                yield claims.gain(one, here[places[kind]] - here[places["standard"]])
                text = "explanations of robust networks overlap more with the mask than the image's edges (our test)"
                one = claims.Claim(SECTION, text, group, "-", over)
                yield claims.gain(one, here[places[kind]] - edges[places[kind]])


def draw(workdir: Path, config: ExpertConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Overlaps by attribution and network; images, masks and maps."""
    specs = specs_of(config)
    places = kinds_of(specs)
    colours = figures.palette([*places])
    groups: dict[str, dict[str, list[figures.Interval]]] = {}
    for row in tables["rows"]:
        mine = groups.setdefault(row["attribution"].replace("_", " "), {})
        mine[row["network"]] = [interval_of(row, "overlap")]
    label = "overlap with the mask (intersection over union)"
    figures.intervals_figure(workdir / "overlap.svg", groups, {}, label, colours)
    maps, names = arrays["shown/maps"].astype(np.float32), arrays["attributions"].tolist()
    strongest = [spec.kind for spec in specs][-1]
    shown = {
        f"{name.replace('_', ' ')}, {kind}": maps[places[kind][0], names.index(name)][..., None]
        for name in config.attributions
        for kind in ("standard", strongest)
    }
    images: dict[str, np.ndarray] = {"test image": arrays["shown/test"], "mask": arrays["shown/masks"] * 2.0 - 1}
    figures.image_grid(workdir / "maps.svg", images, shown)


EXPERIMENT = experiment.Experiment(
    name="expert_regions",
    title="Explanations against an expert's regions",
    question="Do explanations of robust networks point more at what matters, the object, than those of standard ones? "
    "And more than the image's own edges do?",
    config=ExpertConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "attribution": "attribution",
        "test_accuracy": "test accuracy",
        **MEASURES,
        "mask_share": "share of the image that is mask",
    },
    captions={
        "overlap.svg": "Overlap of each attribution's highest pixels, as many as the mask has, with it; random maps "
        "and edges know no network.",
        "maps.svg": "Test images, masks, and maps of the standard and a robust network.",
    },
    takes="three minutes",
    picture="overlap.svg",
    dataset="shapes-16-textured-small",
    neighbour=True,
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
