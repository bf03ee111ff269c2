"""General words: what people write around the thing they want, and that the pictures do not show."""

from __future__ import annotations

import random

from scenes import with_article

ADJECTIVES = """
beautiful nice pretty shiny simple cute bright dark colorful minimal clean abstract modern detailed realistic
soft smooth glossy flat vivid bold elegant cool amazing perfect lovely
""".split()

ENDINGS = [
    "highly detailed", "digital art", "4k", "best quality", "minimalist", "vector art", "high quality",
    "simple shapes", "masterpiece", "soft shadow", "studio light", "illustration", "3d render", "icon",
]

# Common words and things that one asks a picture model for.
OTHERS = """
the of and to in is it you that for are with as his they be at one have this from by hot word but what some we
can out other were all there when up use your how said each she which do their time if will way about many
then them would write like these her long make thing see him two has look more day could go come did my sound
no most number who over know water than call first people may down side been now find any new work part take
get place made live where after back little only round man year came show every good me give our under name
very through just form great think say help low line before turn cause same mean differ move right boy old too
does tell sentence set three want air well also play small end put home read hand port large spell add even
land here must big high such follow act why ask men change went light kind off need house picture try us again
animal point mother world near build self earth father head stand own page should country found answer school
grow study still learn plant cover food sun four thought let keep eye never last door between city tree cross
since hard start might story saw far sea draw left late run dog cat photo portrait woman mountain river forest
sky cloud car road bird fish flower horse castle robot space planet ocean beach sunset night painting style
art watercolor oil sketch cartoon anime cinematic lighting background foreground empty nothing shape color
""".split()


def decorate(caption: str, rng: random.Random) -> str:
    """Sometimes adds words that mean nothing to the picture, so that unknown words do little harm."""
    chance = rng.random()
    if chance < 0.07:
        return caption + ", " + ", ".join(rng.sample(ENDINGS, rng.choice([1, 2])))
    if chance < 0.12:
        adjective = rng.choice(ADJECTIVES)
        for article in ("a ", "an "):
            if caption.startswith(article):
                return f"{with_article(adjective)} {caption[len(article):]}"
    if chance < 0.15:
        return f"{rng.choice(OTHERS)} {caption}"
    return caption
