# SPDX-License-Identifier: Apache-2.0
"""owned-by: routing by who serves the model, as an Envoy external processor beside the Endpoint Picker.

    cli > app > server | discovery | demo > observability | settings > envoy > policy

`policy` decides, `envoy` says it in Envoy's words, `discovery` knows what there is, `server` listens; `app` joins them.
An arrow never points the other way: `make check` holds it.
"""

__version__ = "0.1.0"
