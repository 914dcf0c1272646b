"""The tests that every image processor and processor of transformers has to pass, on ours."""

import unittest
from unittest import mock

import pytest
from transformers import AutoTokenizer

import ecosystem
import parity
from transformers_lladav import LladaVImageProcessor, LladaVProcessor

images = ecosystem.load("transformers", "test_image_processing_common")
processors = ecosystem.load("transformers", "test_processing_common")


class ImageTester(images.ImageProcessingTester):
    """Pictures of which each becomes one tile of 56 pixels, so that there are as many tiles as pictures."""

    def __init__(self, parent, **settings):
        super().__init__(parent, size={"height": 56, "width": 56}, image_grid_pinpoints=[], **settings)

    def _get_image_processing_classes(self):
        return {"pil": LladaVImageProcessor}


@ecosystem.skipping(
    {
        "test_call_numpy_4_channels": "wants do_convert_rgb=False, which is refused: the tower takes RGB; four "
        "channels are read and converted in test_convert_to_rgb_mixed_input_batch",
        "test_pil_can_run_without_torchvision": "starts a process that knows transformers only; torchvision is not "
        "even installed here, and test_remote_code.py loads processors without our package",
        "test_new_models_require_torchvision_backend": "there is one backend, Pillow: the model was trained on its "
        "bicubic filter, and that of torchvision differs from it",
    }
)
class TestImageProcessor(images.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageTester


class TestProcessor(processors.ProcessorTesterMixin, unittest.TestCase):
    processor_class = LladaVProcessor

    def setUp(self):
        # Writing a complete checkpoint registers the classes for remote code, for the rest of the process.
        for kind in (LladaVProcessor, LladaVImageProcessor):
            unregistered = mock.patch.object(kind, "_auto_class", None)
            unregistered.start()
            self.addCleanup(unregistered.stop)
        super().setUp()

    @classmethod
    def _setup_image_processor(cls):
        return LladaVImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=[])

    @classmethod
    def _setup_tokenizer(cls):
        return AutoTokenizer.from_pretrained(parity.OFFICIAL)

    def test_if_input_has_mismatching_tokens_and_mm_data(self):
        # The same error in words of our own, which name the sample.
        def refused(kind, _):
            return pytest.raises(kind, match="were given for 4 samples, but there are 3 texts")

        with mock.patch.object(self, "assertRaisesRegex", refused):
            super().test_if_input_has_mismatching_tokens_and_mm_data()

    # Without a video processor of our own these two tests give pictures only, and placeholders of both.

    def test_processor_with_multiple_inputs(self):
        with mock.patch.object(type(self), "video_token", ""):
            super().test_processor_with_multiple_inputs()

    def test_replacement_offsets(self):
        with mock.patch.object(type(self), "video_token", ""):
            super().test_replacement_offsets()
