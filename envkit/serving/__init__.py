"""An OpenAI-compatible server: one base model, and a model id for each of its adapters.

A request becomes rows of the running batch (`envkit.engine.running`). One thread decodes them
(`envkit.serving.decoding.torch_decoder`), or vLLM does (`envkit.serving.decoding.vllm_decoder`). The web
application (`envkit.serving.app`) turns messages into token ids and tokens into text. It knows who may ask
for which model, and writes down what each request used.
"""
