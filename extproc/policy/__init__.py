# SPDX-License-Identifier: Apache-2.0
"""What to do with a request. Pure: values in, values out; no I/O, no clock, no randomness, no logging.

headers, query, body --extract--> InferenceRequest
InferenceRequest, Snapshot, PolicyConfig --decide--> Decision
Decision's endpoints, a rotation --pick--> an ordered few
"""
