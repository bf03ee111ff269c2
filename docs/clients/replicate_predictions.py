"""Replicate's package at Darkroom: a prediction that is followed, one that is run, one that is cancelled.

pip install replicate==1.0.7
python3 replicate_predictions.py [IMAGE.png]
"""

import os
import sys
import time
import urllib.request

import replicate

DARKROOM = os.environ.get("DARKROOM_URL", "http://127.0.0.1:8080")
# The gateway of local/up takes any key.
KEY = os.environ.get("DARKROOM_API_KEY", "none")
client = replicate.Client(base_url=DARKROOM + "/replicate", api_token=KEY)
circle = {"prompt": "a red circle on a blue background", "seed": 7}

# A model that is served, in the place of a version.
prediction = client.predictions.create(version="shapes", input=circle)
while prediction.status in ("starting", "processing"):
    print(prediction.status)
    time.sleep(0.5)
    prediction.reload()
print(prediction.status)
if prediction.status != "succeeded":
    sys.exit(prediction.error)
path = sys.argv[1] if len(sys.argv) > 1 else "image.png"
link = prediction.output[0]
# A store that can sign its links needs no key, and takes none.
headers = {"Authorization": f"Bearer {KEY}"} if link.startswith(DARKROOM) else {}
with urllib.request.urlopen(urllib.request.Request(link, headers=headers)) as image, open(path, "wb") as file:
    file.write(image.read())
print(path, f"made in {prediction.metrics['predict_time']:.1f} s")

# In one call: any owner will do, the model is what counts. At https, outputs are files that can be read.
for output in client.run("anybody/shapes", input={"prompt": "a blue ring", "num_outputs": 2, "num_inference_steps": 4}):
    print("run:", output)

prediction = client.predictions.create(
    version="shapes", input={"prompt": "a green star", "num_outputs": 8, "num_inference_steps": 100}
)
prediction.cancel()
prediction.reload()
print("taken back:", prediction.status)
if prediction.status != "canceled":
    sys.exit("it ended before it was cancelled")
