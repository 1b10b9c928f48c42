# SPDX-License-Identifier: Apache-2.0
"""How Envoy says it. Sans-io: messages in, messages out; sockets and clocks are the server's.

ProcessingRequest --session--> policy.decide --responses--> bytes of a ProcessingResponse
"""
