# A program that ends well after printing something else.
# problem: program
# a: wrong_answer
# b: wrong_answer
print("accepted")
