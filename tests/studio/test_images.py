"""What the studio shows and hands out: the command's own bytes, the network's own maps, a sentence for what is bad."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import infer
from fusion.inference.options import Options
from fusion.inference.report.provenance import read_manifest, read_record
from fusion.network import FusionSR
from fusion.network.save import FILE_NAME
from fusion.refinement.presets import Blend
from fusion.studio.jobs.ensemble_cache import EnsembleCache, ModelSettings, RefinerSettings
from fusion.studio.jobs.job_queue import Stopped, Ticket
from fusion.studio.jobs.progress import EnsembleProgress
from fusion.studio.jobs.result_store import ResultStore
from fusion.studio.jobs.work import Studio, Wish
from fusion.studio.uploads import Limits
from imaging.command import DONE
from imaging.files import quantize_u8, read_rgb
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic
from tests.experts.parts import small_network
from tests.inference.parts import enlarge, ensemble_of, photo, pixels
from tests.refinement.parts import need_diffusion, save_sd3
from tests.studio.parts import model_settings, save_photo, studio_of, studio_of_functions, work

if TYPE_CHECKING:
    from fusion.studio.jobs.result_view import ResultView

BOTH = ("tiny-a", "tiny-b")


def only(studio: Studio, ticket: Ticket) -> ResultView:
    """The one image that a job made."""
    assert ticket.news.amiss == []
    (name,) = ticket.news.finished
    shown = studio.shelf.get(name)
    assert shown is not None
    return shown


def commanded(tmp_path: Path, source: Path, *words: str) -> Path:
    """The same by the command line."""
    model = model_settings(tmp_path / "again")
    assert model.experts is not None
    chosen = words if "--experts" in words else ("--experts", ",".join(model.experts), *words)
    out = tmp_path / "commanded" / source.name
    assert (
        infer.command_line(["-i", str(source), "-o", str(out), "-n", model.model, "--device", "cpu", *chosen]) == DONE
    )
    return out


@pytest.mark.parametrize(
    ("experts", "options", "words"),
    [(BOTH, Options(), ()), (BOTH, Options(tta=True), ("--tta",)), (("tiny-b",), Options(), ("--experts", "b"))],
)
def test_the_file_is_that_of_the_command(
    tmp_path: Path, experts: tuple[str, ...], options: Options, words: tuple[str, ...]
) -> None:
    studio = studio_of(tmp_path)
    source = save_photo(tmp_path / "in" / "photo.png")
    words = tuple(str(tmp_path / "again" / "tiny-b.safetensors") if word == "b" else word for word in words)
    shown = only(studio, work(studio, Wish((source,), experts, "fp32", options)))
    output, record = shown.files
    expected = commanded(tmp_path, source, *words)
    assert output.read_bytes() == expected.read_bytes()
    assert output.name == "photo.png"
    assert json.loads(record.read_text())["output_sha256"] == (read_record(expected) or {})["output_sha256"]
    assert list(read_manifest(output)["experts"]) == list(experts)


def test_maps_and_pictures_are_the_networks_own(tmp_path: Path) -> None:
    """Against a plain forward pass through the experts and the fusion model."""
    studio = studio_of(tmp_path)
    source = save_photo(tmp_path / "photo.png")
    shown = only(studio, work(studio, Wish((source,), BOTH, "fp32", Options())))
    lr_BCHW, images, feats = read_rgb(source), [], {}
    for seed, name in enumerate(BOTH):
        network = small_network("EDSR", seed)
        network.conv_after_body.register_forward_hook(lambda _m, _i, out, name=name: feats.update({name: out.clone()}))
        with torch.no_grad():
            images.append(network(lr_BCHW))
    with torch.no_grad():
        out = FusionSR.from_pretrained(str(tmp_path / "model"))(lr_BCHW, torch.stack(images, 1), feats, BOTH)
    y, x = 37, 50
    reading = shown.reading(x, y)
    for index, name in enumerate(BOTH):
        assert reading["weights"][name] == pytest.approx(float(out.gates_BEHW[0, index, y, x]), abs=1e-3)
        assert np.abs(reading["colours"][name] - quantize_u8(images[index])[0, :, y, x].numpy().astype(int)).max() <= 1
    for phase, part_BCHW in out.contributions.items():
        strength = 255 * float(part_BCHW[0, :, y, x].square().mean().sqrt())
        assert reading["phases"][phase] == pytest.approx(strength, rel=2e-3, abs=1e-3)
    assert list(reading["phases"]) == list(out.contributions)
    assert reading["others"]["difficulty"] == pytest.approx(float(out.difficulty_B1HW[0, 0, y, x]), abs=1e-3)
    spread = 255 * np.std([one[0, :, y, x].numpy() for one in images], axis=0).mean()
    assert reading["others"]["disagreement"] == pytest.approx(spread, rel=2e-3, abs=1e-3)
    bicubic = quantize_u8(resize_bicubic(lr_BCHW, scale=4))[0, :, y, x]
    assert reading["colours"]["bicubic"] == bicubic.tolist()
    assert list(reading["colours"]) == ["fused", *BOTH, "bicubic"]
    # What is drawn: the fused picture as in the file, and the trusted expert's colour.
    drawn = cv2.imdecode(np.frombuffer(shown.picture_png(0), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(drawn, pixels(shown.output))
    trusted = cv2.imdecode(np.frombuffer(shown.map_png(0), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    told = shown.describe("/x")["experts"][int(out.gates_BEHW[0, :, y, x].argmax())]["colour"]
    assert told == "rgb({}, {}, {})".format(*trusted[y, x])


def test_maps_in_tiles_are_maps_of_the_whole(tmp_path: Path) -> None:
    """Rows and columns come where they belong: pictures and disagreement in tiles equal those of the whole."""
    studio = studio_of_functions(tmp_path)
    source = save_photo(tmp_path / "wide.png", 60, 110)
    whole = only(studio, work(studio, Wish((source,), ("bright", "dark"), "fp32", Options(tile=0))))
    tiled = only(studio, work(studio, Wish((source,), ("bright", "dark"), "fp32", Options(tile=24))))
    assert (whole.seen["tiles"], tiled.seen["tiles"] > 8) == (1, True)
    assert np.abs(tiled.pictures_NHWC.astype(int) - whole.pictures_NHWC).max() <= 1
    lr_HWC = pixels(source).repeat(4, 0).repeat(4, 1) / 255
    spread_HW = np.std([lr_HWC * 1.2, lr_HWC * 0.7], axis=0).mean(-1)
    for shown in (whole, tiled):
        np.testing.assert_allclose(shown.maps_MHW[-1].astype(float), spread_HW, atol=2e-4)


def test_one_expert_has_no_weights_to_show(tmp_path: Path) -> None:
    words = model_settings(tmp_path / "model")
    assert words.experts is not None
    alone = ModelSettings(words.experts[0], "cpu")
    studio = studio_of(tmp_path, alone)
    shown = only(studio, work(studio, Wish((save_photo(tmp_path / "a.png"),), ("tiny-a",), "fp32", Options())))
    assert shown.listed == ()
    assert shown.reading(0, 0)["weights"] == {}


def test_bad_files_get_a_sentence_and_the_rest_is_done(tmp_path: Path) -> None:
    studio = studio_of(tmp_path, limits=Limits(megabytes=0.05, pixels=4000, images=6))
    empty, junk, cut, large, heavy = (
        tmp_path / "secret" / f"{one}.png" for one in ("e", "junk", "cut", "large", "heavy")
    )
    fine = save_photo(tmp_path / "secret" / "fine.png")
    empty.write_bytes(b"")
    junk.write_bytes(b"<script>alert(1)</script>")
    cut.write_bytes(fine.read_bytes()[:-200])
    save_photo(large, 100, 41)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 150, 3), np.uint8)).save(heavy)
    news = work(studio, Wish((empty, junk, cut, large, heavy, fine), BOTH, "fp32", Options())).news
    assert len(news.finished) == 1
    assert sorted(one.partition(":")[0] for one in news.amiss) == [
        "cut.png",
        "e.png",
        "heavy.png",
        "junk.png",
        "large.png",
    ]
    told = "\n".join(news.amiss)
    for words in ("zero bytes", "is not an image", "41x100, more than the 4,000 pixels", "MB, more than the 0.05 MB"):
        assert words in told
    assert "secret" not in told
    assert not list(studio.folder.rglob("*.tmp.*"))
    with pytest.raises(Refusal, match="7 images are more than 6"):
        work(studio, Wish((fine,) * 7, BOTH, "fp32", Options()))
    with pytest.raises(Refusal, match="no image was given"):
        work(studio, Wish((), BOTH, "fp32", Options()))
    with pytest.raises(Refusal, match="no expert is chosen"):
        work(studio, Wish((fine,), (), "fp32", Options()))
    with pytest.raises(Refusal, match="no precision"):
        work(studio, Wish((fine,), BOTH, "int1", Options()))


def test_equal_names_do_not_meet(tmp_path: Path) -> None:
    studio = studio_of(tmp_path)
    twins = [save_photo(tmp_path / str(number) / "same.png", seed=number) for number in (1, 2)]
    news = work(studio, Wish(tuple(twins), BOTH, "fp32", Options())).news
    first, second = (studio.shelf.get(name) for name in news.finished)
    assert first is not None
    assert second is not None
    assert first.output.name == second.output.name == "same.png"
    assert (pixels(first.output) != pixels(second.output)).any()


def test_cancelling_ends_between_two_calls_and_leaves_nothing(tmp_path: Path) -> None:
    studio = studio_of_functions(tmp_path)
    source = save_photo(tmp_path / "photo.png", 80, 80)
    ticket = Ticket("me", lambda _: None)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            ticket.stop()
        Ticket.check(ticket)

    ticket.check = check  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        studio.work(Wish((source,), ("bright", "dark"), "fp32", Options(tile=24)), ticket)
    assert ticket.news.finished == []
    assert [path for path in studio.folder.rglob("*") if path.is_file()] == []
    assert threading.active_count() < 20


def test_progress_counts_every_call(tmp_path: Path) -> None:
    studio = studio_of_functions(tmp_path)
    source = save_photo(tmp_path / "photo.png", 80, 80)
    ticket = work(studio, Wish((source,), ("bright", "dark"), "fp32", Options(tile=24)))
    watch: EnsembleProgress = ticket.news.watch
    tiles = only(studio, ticket).seen["tiles"]
    assert tiles > 1
    assert {name: (one.done, one.expected) for name, one in watch.stages.items()} == {
        "bright": (tiles, tiles),
        "dark": (tiles, tiles),
        "fusion": (tiles, tiles),
    }
    assert all(one.seconds > 0 for one in watch.stages.values())


def test_a_folder_with_experts_of_its_own(tmp_path: Path) -> None:
    """As models are shipped: default.yaml names experts by file and the fusion; any of them can be left out."""
    words = model_settings(tmp_path / "model")
    assert words.experts is not None
    names = ", ".join(f"{name}.safetensors" for name in BOTH)
    (tmp_path / "shipped").mkdir()
    for path in map(Path, words.experts):
        path.rename(tmp_path / "shipped" / path.name)
    (tmp_path / "shipped" / "fusion.safetensors").write_bytes((tmp_path / "model" / FILE_NAME).read_bytes())
    (tmp_path / "shipped" / "default.yaml").write_text(f"experts: [{names}]\nfusion: fusion.safetensors\n")
    studio = studio_of(tmp_path, ModelSettings(str(tmp_path / "shipped"), "cpu"))
    assert studio.workshop.names == BOTH
    source = save_photo(tmp_path / "photo.png")
    for experts in (BOTH, ("tiny-b",)):
        shown = only(studio, work(studio, Wish((source,), experts, "fp32", Options())))
        assert tuple(read_manifest(shown.output)["experts"]) == experts


def test_a_budget_is_planned_as_by_the_command(tmp_path: Path) -> None:
    """Tiles that were not bought have no weight for the dear expert, and its picture is not shown."""
    from tests.inference.test_budget import head_for, run_budget

    levels = np.full((60, 200, 3), 128, np.uint8)
    levels[:, 110:] = photo(60, 90) // 2 + np.random.default_rng(0).integers(0, 100, (60, 90, 3))
    Image.fromarray(levels).save(tmp_path / "in.png")
    ensemble = ensemble_of(cheap=enlarge, dear=lambda lr_BCHW: enlarge(lr_BCHW) + 0.1)
    ensemble.identity["fusion"]["kind"] = "fusion"
    (tmp_path / "head.json").write_text(head_for("cheap", "dear").model_dump_json())
    (tmp_path / "studio").mkdir()
    workshop = EnsembleCache(lambda _wanted, _precision: ensemble, ensemble.names, tmp_path / "head.json")
    studio = Studio(workshop, ResultStore(), Limits(), tmp_path / "studio")
    wish = Wish((tmp_path / "in.png",), ensemble.names, "fp32", Options(tile=40, budget=0.6))
    shown = only(studio, work(studio, wish))
    record = run_budget(tmp_path, head_for("cheap", "dear"), budget=0.6)
    assert shown.plan is not None
    assert 0 < shown.plan["share"]["dear"] < 1
    assert read_manifest(shown.output) == record["claim"]
    assert shown.output.read_bytes() == (tmp_path / "out" / "in.png").read_bytes()
    assert shown.picture_names == ("fused", "cheap", "bicubic")
    weights = shown.maps_MHW[dict(shown.map_names)["gate/dear"]]
    assert set(np.unique(weights[:, ::8]).tolist()) >= {0.0, 0.5}
    assert "disagreement" not in dict(shown.map_names)
    with pytest.raises(Refusal, match="no budget model"):
        EnsembleCache(lambda _wanted, _precision: ensemble, ensemble.names).budget_runner(ensemble, Options(budget=0.5))


def test_refinement_is_that_of_the_command(tmp_path: Path) -> None:
    need_diffusion()
    base = save_sd3(tmp_path / "sd3")
    model = model_settings(tmp_path / "model", refiner=RefinerSettings("tsdsr", str(base), None))
    studio = studio_of(tmp_path, model)
    source = save_photo(tmp_path / "in" / "photo.png")
    ticket = work(studio, Wish((source,), BOTH, "fp32", Options(refine=Blend(0.5, "wavelet"))))
    shown = only(studio, ticket)
    words = ["--refine", "tsdsr", "--refine-model", str(base), "--refine-strength", "0.5"]
    expected = commanded(tmp_path, source, *words)
    assert shown.output.read_bytes() == expected.read_bytes()
    assert shown.picture_names[:2] == ("refined", "fused")
    np.testing.assert_array_equal(shown.pictures_NHWC[0], pixels(expected))
    assert (shown.pictures_NHWC[0] != shown.pictures_NHWC[1]).any()
    stage = ticket.news.watch.stages["refinement"]
    assert (stage.done, stage.expected) == (3, 3)  # encoder, model, decoder: one tile each
    assert shown.guard["change_rms"] > 0


def test_the_shelf_throws_the_oldest_away(tmp_path: Path) -> None:
    studio = studio_of(tmp_path)
    small = ResultStore(megapixels=0.025)
    source = save_photo(tmp_path / "photo.png")
    shown = [only(studio, work(studio, Wish((source,), BOTH, "fp32", Options()))) for _ in range(3)]
    names = [small.put(one) for one in shown]
    assert [small.get(name) is not None for name in names] == [False, True, True]
    assert [one.folder.exists() for one in shown] == [False, True, True]
    assert len(set(names)) == 3
    assert small.get("../../etc/passwd") is None


def test_grey_and_deep_files(tmp_path: Path) -> None:
    studio = studio_of(tmp_path)
    grey, deep = tmp_path / "grey.png", tmp_path / "deep.png"
    Image.fromarray(photo(20, 24, 1)).save(grey)
    cv2.imwrite(str(deep), photo(20, 24, depth=16))
    news = work(studio, Wish((grey, deep), BOTH, "fp32", Options())).news
    first, second = (studio.shelf.get(name) for name in news.finished)
    assert first is not None
    assert second is not None
    assert pixels(first.output).ndim == 2
    assert cv2.imread(str(second.output), cv2.IMREAD_UNCHANGED).dtype == np.uint16
