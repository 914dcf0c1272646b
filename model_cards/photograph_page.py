"""Take the picture of the web page that the README shows: an answer half way out of its masks.

python model_cards/photograph_page.py    # needs playwright and Chromium
"""

import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from transformers_lladav import asking
from transformers_lladav.cli_serving import free_port
from transformers_lladav.web import launch
from transformers_lladav.web_talk import Queues, Site

ASSETS = Path(__file__).parent / "assets"
COLOURS = 192  # of the palette; the page has few


def main() -> None:
    """Write `assets/web.png`."""
    assistant = asking.load(device="cpu")
    site = Site(models={"bundled": lambda: assistant})
    queues = Queues(site)
    page = launch(site, queues, "127.0.0.1", free_port("127.0.0.1", 0))
    target = ASSETS / "web.png"
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1120, "height": 690})
        view.goto(page.local_url)
        view.set_input_files("#picture input[type=file]", str(ASSETS / "scene.png"))
        view.wait_for_selector("#picture img")
        view.click("text=Settings")
        view.fill("#pace input[type=number]", "1")
        view.press("#pace input[type=number]", "Tab")
        view.click("text=Settings")
        view.fill("#question textarea", "Describe the picture.")
        view.click("#ask")
        view.wait_for_function("document.querySelectorAll('.lv-answer .lv-rated').length >= 12")
        view.screenshot(path=str(target))
        browser.close()
    page.close()
    queues.close()
    with Image.open(target) as picture:
        reduced = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    reduced.save(target, optimize=True)


if __name__ == "__main__":
    main()
