"""The side by side: reflector beside what people would pick instead, on the same work, in one run.

`record` is what a run hands on, `works` is what is measured, `proxies` on what, `meters` how, and
`run` in which order. What a person sees is made from the record alone.
"""
