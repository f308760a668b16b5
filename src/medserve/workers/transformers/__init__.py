"""What runs inside a worker of the transformers engine: Gemma 3 from safetensors, many answers in one batch.

`folder.py` holds a folder against what a Gemma 3 model must be, without torch; `loading.py` loads it, `prompts.py` and
`vision.py` make what the model reads, `decoding.py` answers, and `serving.py` speaks HTTP to the gateway. Of answering,
`rows.py` is one conversation, `passes.py` what the network computes for many, `cache.py` what it remembers of them.
"""
