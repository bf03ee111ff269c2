"""Triton's client at Darkroom, which speaks KServe's protocol, version 2, with binary tensors.

pip install tritonclient[http]==2.73.0
python3 triton_http.py [IMAGE.png]
"""

import os
import sys

import numpy
import tritonclient.http as triton
from tritonclient.utils import triton_to_np_dtype

# The package wants an address without a scheme.
address = os.environ.get("DARKROOM_URL", "http://127.0.0.1:8080").removeprefix("http://")
# The gateway of local/up wants no key.
headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("DARKROOM_API_KEY")) else {}

# Each input is one element; only PROMPT is required.
INPUTS = {
    "PROMPT": ("BYTES", "a red circle on a blue background"),
    "NEGATIVE_PROMPT": ("BYTES", ""),
    "SCHEDULER": ("BYTES", "ddim"),
    "SEED": ("INT64", 7),
    "STEPS": ("INT32", 20),
    "WIDTH": ("INT32", 256),
    "HEIGHT": ("INT32", 256),
    "NUM_IMAGES": ("INT32", 1),
    "GUIDANCE": ("FP32", 5.0),
}


def tensor(name, datatype, value):
    tensor = triton.InferInput(name, [1], datatype)
    return tensor.set_data_from_numpy(numpy.array([value], dtype=triton_to_np_dtype(datatype)), binary_data=True)


def output(name):
    return triton.InferRequestedOutput(name, binary_data=True)


# The answer comes when the images are made.
with triton.InferenceServerClient(address, network_timeout=300.0) as client:
    if not client.is_model_ready("shapes", headers=headers):
        sys.exit("shapes is not served")
    print("inputs:", *(given["name"] for given in client.get_model_metadata("shapes", headers=headers)["inputs"]))
    inputs = [tensor(name, *given) for name, given in INPUTS.items()]
    result = client.infer("shapes", inputs, outputs=[output("IMAGE"), output("IMAGE_URL")], headers=headers)

path = sys.argv[1] if len(sys.argv) > 1 else "image.png"
# The bytes of the file, one element for each image.
with open(path, "wb") as file:
    print(path, file.write(result.as_numpy("IMAGE")[0]), "bytes")
print("url:", result.as_numpy("IMAGE_URL")[0].decode())
