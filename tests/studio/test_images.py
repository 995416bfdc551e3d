"""What the studio shows and hands out: the command's own bytes, the network's own maps."""

from __future__ import annotations

import json
from pathlib import Path

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
from fusion.studio.jobs.result_store import ResultStore
from fusion.studio.jobs.upscaler import Upscaler, UpscaleRequest
from fusion.studio.uploads import Limits
from imaging.command import DONE
from imaging.files import quantize_u8, read_rgb
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic
from tests.experts.parts import small_network
from tests.inference.parts import enlarge, ensemble_of, photo, pixels
from tests.refinement.parts import need_diffusion, save_sd3
from tests.studio.parts import BOTH, make_upscaler, model_settings, only, run_job, save_photo, upscaler_of_functions


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
    upscaler = make_upscaler(tmp_path)
    source = save_photo(tmp_path / "in" / "photo.png")
    words = tuple(str(tmp_path / "again" / "tiny-b.safetensors") if word == "b" else word for word in words)
    result = only(upscaler, run_job(upscaler, UpscaleRequest((source,), experts, "fp32", options)))
    output, record = result.files
    expected = commanded(tmp_path, source, *words)
    assert output.read_bytes() == expected.read_bytes()
    assert output.name == "photo.png"
    assert json.loads(record.read_text())["output_sha256"] == (read_record(expected) or {})["output_sha256"]
    assert list(read_manifest(output)["experts"]) == list(experts)


def test_maps_and_pictures_are_the_networks_own(tmp_path: Path) -> None:
    """Against a plain forward pass through the experts and the fusion model."""
    upscaler = make_upscaler(tmp_path)
    source = save_photo(tmp_path / "photo.png")
    result = only(upscaler, run_job(upscaler, UpscaleRequest((source,), BOTH, "fp32", Options())))
    lr_BCHW, images, feats = read_rgb(source), [], {}
    for seed, name in enumerate(BOTH):
        network = small_network("EDSR", seed)
        network.conv_after_body.register_forward_hook(lambda _m, _i, out, name=name: feats.update({name: out.clone()}))
        with torch.no_grad():
            images.append(network(lr_BCHW))
    with torch.no_grad():
        out = FusionSR.from_pretrained(str(tmp_path / "model"))(lr_BCHW, torch.stack(images, 1), feats, BOTH)
    y, x = 37, 50
    values = result.pixel_values(x, y)
    for index, name in enumerate(BOTH):
        assert values["weights"][name] == pytest.approx(float(out.gates_BEHW[0, index, y, x]), abs=1e-3)
        assert np.abs(values["colours"][name] - quantize_u8(images[index])[0, :, y, x].numpy().astype(int)).max() <= 1
    for phase, part_BCHW in out.contributions.items():
        strength = 255 * float(part_BCHW[0, :, y, x].square().mean().sqrt())
        assert values["phases"][phase] == pytest.approx(strength, rel=2e-3, abs=1e-3)
    assert list(values["phases"]) == list(out.contributions)
    assert values["others"]["difficulty"] == pytest.approx(float(out.difficulty_B1HW[0, 0, y, x]), abs=1e-3)
    spread = 255 * np.std([one[0, :, y, x].numpy() for one in images], axis=0).mean()
    assert values["others"]["disagreement"] == pytest.approx(spread, rel=2e-3, abs=1e-3)
    bicubic = quantize_u8(resize_bicubic(lr_BCHW, scale=4))[0, :, y, x]
    assert values["colours"]["bicubic"] == bicubic.tolist()
    assert list(values["colours"]) == ["fused", *BOTH, "bicubic"]
    # What is drawn: the fused picture as in the file, and the trusted expert's colour.
    drawn = cv2.imdecode(np.frombuffer(result.picture_png(0), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(drawn, pixels(result.output))
    trusted = cv2.imdecode(np.frombuffer(result.map_png(0), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    expected = result.describe("/x")["experts"][int(out.gates_BEHW[0, :, y, x].argmax())]["colour"]
    assert expected == "rgb({}, {}, {})".format(*trusted[y, x])


def test_maps_in_tiles_are_maps_of_the_whole(tmp_path: Path) -> None:
    """Rows and columns come where they belong: pictures and disagreement in tiles equal those of the whole."""
    upscaler = upscaler_of_functions(tmp_path)
    source = save_photo(tmp_path / "wide.png", 60, 110)
    whole = only(upscaler, run_job(upscaler, UpscaleRequest((source,), ("bright", "dark"), "fp32", Options(tile=0))))
    tiled = only(upscaler, run_job(upscaler, UpscaleRequest((source,), ("bright", "dark"), "fp32", Options(tile=24))))
    assert (whole.seen["tiles"], tiled.seen["tiles"] > 8) == (1, True)
    assert np.abs(tiled.pictures_NHWC.astype(int) - whole.pictures_NHWC).max() <= 1
    lr_HWC = pixels(source).repeat(4, 0).repeat(4, 1) / 255
    spread_HW = np.std([lr_HWC * 1.2, lr_HWC * 0.7], axis=0).mean(-1)
    for result in (whole, tiled):
        np.testing.assert_allclose(result.maps_MHW[-1].astype(float), spread_HW, atol=2e-4)


def test_one_expert_has_no_weights_to_show(tmp_path: Path) -> None:
    words = model_settings(tmp_path / "model")
    assert words.experts is not None
    alone = ModelSettings(words.experts[0], "cpu")
    upscaler = make_upscaler(tmp_path, alone)
    result = only(
        upscaler, run_job(upscaler, UpscaleRequest((save_photo(tmp_path / "a.png"),), ("tiny-a",), "fp32", Options()))
    )
    assert result.overlays == ()
    assert result.pixel_values(0, 0)["weights"] == {}


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
    upscaler = make_upscaler(tmp_path, ModelSettings(str(tmp_path / "shipped"), "cpu"))
    assert upscaler.ensembles.names == BOTH
    source = save_photo(tmp_path / "photo.png")
    for experts in (BOTH, ("tiny-b",)):
        result = only(upscaler, run_job(upscaler, UpscaleRequest((source,), experts, "fp32", Options())))
        assert tuple(read_manifest(result.output)["experts"]) == experts


def test_a_budget_is_planned_as_by_the_command(tmp_path: Path) -> None:
    """Where the costly expert did not run it has no weight, and its picture is not shown."""
    from tests.inference.budget.parts import budget_model_for, run_budget

    levels = np.full((60, 200, 3), 128, np.uint8)
    levels[:, 110:] = photo(60, 90) // 2 + np.random.default_rng(0).integers(0, 100, (60, 90, 3))
    Image.fromarray(levels).save(tmp_path / "in.png")
    ensemble = ensemble_of(cheap=enlarge, dear=lambda lr_BCHW: enlarge(lr_BCHW) + 0.1)
    ensemble.identity["fusion"]["kind"] = "fusion"
    (tmp_path / "budget.json").write_text(budget_model_for("cheap", "dear").model_dump_json())
    (tmp_path / "studio").mkdir()
    ensembles = EnsembleCache(lambda _wanted, _precision: ensemble, ensemble.names, tmp_path / "budget.json")
    upscaler = Upscaler(ensembles, ResultStore(), Limits(), tmp_path / "studio")
    request = UpscaleRequest((tmp_path / "in.png",), ensemble.names, "fp32", Options(tile=40, budget=0.6))
    result = only(upscaler, run_job(upscaler, request))
    record = run_budget(tmp_path, budget_model_for("cheap", "dear"), budget=0.6)
    assert result.plan is not None
    assert 0 < result.plan["share"]["dear"] < 1
    assert read_manifest(result.output) == record["claim"]
    assert result.output.read_bytes() == (tmp_path / "out" / "in.png").read_bytes()
    assert result.picture_names == ("fused", "cheap", "bicubic")
    weights = result.maps_MHW[dict(result.map_names)["gate/dear"]]
    assert set(np.unique(weights[:, ::8]).tolist()) >= {0.0, 0.5}
    assert "disagreement" not in dict(result.map_names)
    with pytest.raises(Refusal, match="no budget model"):
        EnsembleCache(lambda _wanted, _precision: ensemble, ensemble.names).budget_runner(ensemble, Options(budget=0.5))


def test_refinement_is_that_of_the_command(tmp_path: Path) -> None:
    need_diffusion()
    base = save_sd3(tmp_path / "sd3")
    model = model_settings(tmp_path / "model", refiner=RefinerSettings("tsdsr", str(base), None))
    upscaler = make_upscaler(tmp_path, model)
    source = save_photo(tmp_path / "in" / "photo.png")
    job = run_job(upscaler, UpscaleRequest((source,), BOTH, "fp32", Options(refine=Blend(0.5, "wavelet"))))
    result = only(upscaler, job)
    words = ["--refine", "tsdsr", "--refine-model", str(base), "--refine-strength", "0.5"]
    expected = commanded(tmp_path, source, *words)
    assert result.output.read_bytes() == expected.read_bytes()
    assert result.picture_names[:2] == ("refined", "fused")
    np.testing.assert_array_equal(result.pictures_NHWC[0], pixels(expected))
    assert (result.pictures_NHWC[0] != result.pictures_NHWC[1]).any()
    stage = job.status.progress.stages["refinement"]
    assert (stage.done, stage.expected) == (3, 3)  # encoder, model, decoder: one tile each
    assert result.guard["change_rms"] > 0


def test_grey_and_deep_files(tmp_path: Path) -> None:
    upscaler = make_upscaler(tmp_path)
    grey, deep = tmp_path / "grey.png", tmp_path / "deep.png"
    Image.fromarray(photo(20, 24, 1)).save(grey)
    cv2.imwrite(str(deep), photo(20, 24, depth=16))
    status = run_job(upscaler, UpscaleRequest((grey, deep), BOTH, "fp32", Options())).status
    first, second = (upscaler.results.get(name) for name in status.finished)
    assert first is not None
    assert second is not None
    assert pixels(first.output).ndim == 2
    assert cv2.imread(str(second.output), cv2.IMREAD_UNCHANGED).dtype == np.uint16
