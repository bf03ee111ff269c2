"""OpenAI's package at Darkroom: an image, previews while it is made, and an edit of it.

pip install openai==3.57.0
python3 openai_images.py [IMAGE.png]
"""

import base64
import os
import sys

import openai

client = openai.OpenAI(
    base_url=os.environ.get("DARKROOM_URL", "http://127.0.0.1:8080") + "/openai/v1",
    # The gateway of local/up takes any key.
    api_key=os.environ.get("DARKROOM_API_KEY", "none"),
)
path = sys.argv[1] if len(sys.argv) > 1 else "image.png"
print("models:", *(model.id for model in client.models.list()))

# What OpenAI's interface has no word for goes into extra_body: the fields of a request to Darkroom.
circle = {"model": "shapes", "prompt": "a red circle on a blue background", "size": "256x256", "extra_body": {"seed": 7}}
for event in client.images.generate(stream=True, partial_images=3, **circle):
    print(event.type, len(event.b64_json))
with open(path, "wb") as file:
    file.write(base64.b64decode(event.b64_json))
if event.type != "image_generation.completed":
    sys.exit("the stream ended without an image")

# The same words, size and seed are the same image. It comes as a link: good for an hour where the store signs it, else at the
# gateway, which wants the key.
print("again:", client.images.generate(**circle).data[0].url)

with open(path, "rb") as image:
    edited = client.images.edit(
        model="shapes", image=image, prompt="a green star on a blue background", size="256x256", extra_body={"strength": 0.7}
    )
print("edited:", edited.data[0].url)

# What is wrong is an exception, which names the parameter.
try:
    client.images.generate(model="shapes", prompt="a ring", size="257x256")
    sys.exit("a size that no model has was taken")
except openai.BadRequestError as error:
    print("refused:", error.param, error.code)
