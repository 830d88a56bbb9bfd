"""The page: one constant Gradio shell that our own script fills.

The shell never receives run text. Gradio renders a component's value through a template that would execute `${...}` in it, so what
agents wrote goes from /api straight into text nodes (static/*.js), and no Gradio value ever holds it.
"""

import os

# Read when Blocks are built: no telemetry, no version check, nothing from a hub.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"

import gradio as gr

SHELL = '<div class="aa" data-view="loading"><p class="aa-loading">Loading …</p></div>'

# The import is relative to the server, so every path that the script loads stays on this origin.
START = "import('/ui/main.js').then((page) => page.start(element.querySelector('.aa')));"

HEAD = """
<link rel="icon" href="/ui/icon.svg">
<link rel="stylesheet" href="/ui/app.css">
<link rel="stylesheet" href="/ui/training.css">
<link rel="stylesheet" href="/ui/agreement.css">
<link rel="stylesheet" href="/ui/judge.css">
<link rel="stylesheet" href="/ui/play.css">
<link rel="stylesheet" href="/ui/compare.css">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
"""


def build_blocks() -> gr.Blocks:
    """The one page as Gradio blocks."""
    with gr.Blocks(title="agentalign", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(value="", html_template=SHELL, js_on_load=START, apply_default_css=False, padding=False, elem_id="aa-shell")
    return blocks


def theme() -> gr.themes.Base:
    """Fonts of the machine: Gradio's bundled ones lack glyphs in bold, and others would be fetched from elsewhere."""
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
