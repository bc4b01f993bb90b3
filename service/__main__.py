"""python -m service [--help | --version]"""

from service.launch import serve

serve()
