"""The checks of `arcd doctor --thorough`: each is one function that ends in one `Finding`.

thorough      the plan: which process makes which checks until when; findings become a document
part          a process that makes checks and sends each finding as a line of JSON
environment   versions, driver, variables
workbench     what the checks of trainer and engine share: a runtime, tasks, trained adapters
parity        trainer and engine have the same model and the same adapters
speed         both alone, both together
memory        the engine without memory; twenty adapters
lives         a daemon that is killed, and three tasks
"""
